"""`Postprocessor`: scores embeddings against tag banks and chooses tags.

Not here: live changes of the configuration (`live_scorer.py`), the scoring itself (`pipeline/`).
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.serve.handle import DeploymentHandle

from serve_app.config.public import show_live
from serve_app.errors import TaggerError
from serve_app.graph import metrics
from serve_app.graph.banks import RowTally, bank_builder
from serve_app.graph.calls import InnerCalls
from serve_app.graph.live_scorer import LiveScorer
from serve_app.graph.memory import FreedMemory
from serve_app.graph.messages import (
    PackedVocabulary,
    PostprocessorState,
    ScoreReply,
    ScoreRequest,
)
from serve_app.graph.replies import is_large, packed_vocabulary, pickles
from serve_app.graph.scoring_thread import ScoringThread
from serve_app.pipeline.bounded_tags import TagBound, TagOutcome, images_at_once, tag_within
from serve_app.pipeline.scorer import (
    ScoredBy,
    Scorer,
    TagScoring,
    read_scored_checkpoint,
    rows_share,
)
from serve_app.pipeline.tagger import (
    VocabularyCard,
    vocabulary_cards,
    vocabulary_detail,
    vocabulary_state,
)
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.identity import encoder_fingerprint
from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.known_rows import KnownRows
from serve_app.tagging.options import RequestedVocabulary, TagOptions
from serve_app.tagging.settings import TagSettings
from serve_app.telemetry.logs import configure_replica_logging

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScoringSpec:
    """Settings of a Postprocessor replica.

    Attributes:
        model: Folder or hub id.
        revision: Revision of a hub id.
        dtype: Requested dtype of the text tower.
        quantization: Quantization of the text tower.
        max_labels: Maximum number of labels in one request.
        cache_bytes: Size of the cache for text embeddings of requests.
        tag_banks: Location that stores banks of registered vocabularies; None to store none.
        timeout_s: Timeout of one call to the TextEncoder for a request.
    """

    model: str
    revision: str | None
    dtype: str
    quantization: str
    max_labels: int
    cache_bytes: int
    tag_banks: str | None
    timeout_s: float


class Postprocessor:
    """Deployment that holds tag banks and scores embeddings against them."""

    def __init__(self, spec: ScoringSpec, texts: DeploymentHandle) -> None:
        configure_replica_logging()
        self._spec = spec
        self._checkpoint = read_scored_checkpoint(load_checkpoint(spec.model, spec.revision))
        encoder = encoder_fingerprint(self._checkpoint.fingerprint, spec.dtype, spec.quantization)
        known = KnownRows(encoder, rows_share(spec.cache_bytes), spec.tag_banks)
        calls = InnerCalls(texts, spec.timeout_s, metrics.inner_retries().inc)
        self._builder = bank_builder(calls, known, self._checkpoint.canonicalize, RowTally().note)
        self._live = LiveScorer(self._make_scorer)
        self._thread = ScoringThread()
        self._freed = FreedMemory()
        self._scoring = 0

    def check_health(self) -> None:
        """Return freed memory when idle; Serve calls this every 3 seconds."""
        self._freed.update(is_idle=not self._scoring)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply new `TagSettings`; see `LiveScorer.reconfigure`."""
        await self._live.reconfigure(user_config)

    async def score(self, request: ScoreRequest) -> ScoreReply:
        """Tag a micro-batch of embeddings, each with its own options, with one configuration.

        If the options of an image are invalid, its outcome is the error.
        """
        self._scoring += 1
        try:
            reply = await self._score(request)
            if not is_large(reply):
                return reply
            parts = [part async for part in self._thread.in_turns(pickles(reply.outcomes))]
            return ScoreReply((), reply.scored, tuple(parts))
        finally:
            self._scoring -= 1

    async def prepare(self, requested: RequestedVocabulary) -> None:
        """Encode a request's labels while its images are encoded; `score` reports errors."""
        try:
            await self._live.current.bank_for(requested)
        except TaggerError as error:
            logger.info("labels were not prepared: %s", error.code)

    async def embed_texts(self, texts: tuple[str, ...]) -> FloatArray:
        """Return embeddings (n, D) float32, unit norm, of texts without a prompt template."""
        return await self._builder.embed_texts(texts)

    async def vocabularies(self) -> tuple[VocabularyCard, ...]:
        """Return the registered vocabularies."""
        scorer = self._live.current
        return vocabulary_cards(scorer.settings, await scorer.every_registered())

    async def vocabulary(self, name: str) -> PackedVocabulary:
        """Return a vocabulary with its tags; raises `UnknownVocabulary`."""
        scorer = self._live.current
        detail = vocabulary_detail(scorer.settings, await scorer.every_registered(), name)
        return await asyncio.to_thread(packed_vocabulary, detail)

    async def state(self) -> PostprocessorState:
        """Return the state of this replica."""
        scorer = self._live.current
        default = await scorer.registered(scorer.settings.default_vocabulary)
        vocabularies = vocabulary_state(scorer.settings, default)
        return PostprocessorState(vocabularies, show_live(scorer.settings), self._live.refused)

    def _make_scorer(self, settings: TagSettings) -> Scorer:
        spec = self._spec
        return Scorer(settings, self._checkpoint, self._builder, spec.max_labels, spec.cache_bytes)

    async def _score(self, request: ScoreRequest) -> ScoreReply:
        scorer = self._live.current
        outcomes: list[TagOutcome] = [()] * len(request.options)
        scored: list[ScoredBy | None] = [None] * len(request.options)
        for options, images in _images_by_options(request.options).items():
            found: Sequence[TagOutcome]
            try:
                scoring = await scorer.scoring_for(options)
                found = await self._tag(request.part(images), scoring)
            except TaggerError as error:
                found = [error] * len(images)
            else:
                for i in images:
                    scored[i] = scoring.by
            for i, outcome in zip(images, found, strict=True):
                outcomes[i] = outcome
        return ScoreReply(tuple(outcomes), tuple(scored))

    async def _tag(self, request: ScoreRequest, scoring: TagScoring) -> list[TagOutcome]:
        """Tag images that have the same options."""
        bound = TagBound(request.max_bytes, request.shares, scoring.by.include_raw_scores)
        blocks = tag_within(request.image_embeds, scoring, request.views, bound)
        if len(request.options) <= images_at_once(scoring):
            return await self._thread.first(blocks)  # the usual micro-batch: one hop to the thread
        return [outcome async for block in self._thread.in_turns(blocks) for outcome in block]


def _images_by_options(options: Sequence[TagOptions]) -> dict[TagOptions, list[int]]:
    """Group the indices of images by their options."""
    images: dict[TagOptions, list[int]] = {}
    for i, own in enumerate(options):
        images.setdefault(own, []).append(i)
    return images
