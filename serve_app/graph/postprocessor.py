"""Scores embeddings against tag banks and chooses tags. Holds the service's own vocabulary, and
those of requests.

The configuration changes live: a new one is built aside, its labels encoded, and swapped in at
once. One that cannot work is refused and the last good one kept, since a `reconfigure` that raises
kills the replica.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from ray.serve.handle import DeploymentHandle

from serve_app.config.public import show_live
from serve_app.errors import ServiceError, TaggerError
from serve_app.graph import metrics
from serve_app.graph.banks import BankBuilder
from serve_app.graph.calls import InnerCalls
from serve_app.graph.memory import FreedMemory
from serve_app.graph.messages import (
    PackedVocabulary,
    PostprocessorState,
    ScoreReply,
    ScoreRequest,
)
from serve_app.graph.replies import (
    TagBound,
    images_at_once,
    is_large,
    packed_vocabulary,
    pickles,
    tag_within,
)
from serve_app.pipeline.tagger import (
    ScoredBy,
    TagOutcome,
    VocabularyCard,
    VocabularyState,
    vocabulary_cards,
    vocabulary_detail,
)
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.identity import checkpoint_fingerprint, encoder_fingerprint
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.scoring import check_width
from serve_app.siglip.text import canonicalize_text
from serve_app.siglip.weights import read_similarity_head
from serve_app.tagging.byte_cache import ByteCache
from serve_app.tagging.known_rows import KnownRows
from serve_app.tagging.same_text import check_words
from serve_app.tagging.selection import SelectionRule
from serve_app.tagging.settings import TagOptions, TagSettings, TextKey
from serve_app.tagging.tag_bank import ScoredBank, scored_bank
from serve_app.telemetry.logs import configure_replica_logging

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

RETRY_PAUSE_S = 2.0
BANKS_SHARE = 4
"""One part in this many of the cache's bytes is for whole banks of requests, the rest for their
rows."""
BYTES_PER_TAG = 1024
"""Of a bank that a request made, besides its embeddings: tags, tables and what it is known by."""


@dataclass(frozen=True, slots=True)
class ScoringSpec:
    """What a Postprocessor scores with.

    Attributes:
        model: Folder or hub id.
        revision: Of a hub id.
        dtype: What the text tower was asked to run as.
        quantization: The same.
        max_labels: That a request may bring.
        cache_bytes: Of text embeddings that requests asked for.
        tag_banks: Where banks of registered vocabularies are stored; None for nowhere.
        timeout_s: Of one call to the TextEncoder for a request.
    """

    model: str
    revision: str | None
    dtype: str
    quantization: str
    max_labels: int
    cache_bytes: int
    tag_banks: str | None
    timeout_s: float


@dataclass(frozen=True, slots=True)
class _Live:
    """One configuration, the banks of its vocabularies, and those that requests made of them;
    swapped as a whole.
    """

    settings: TagSettings
    banks: dict[str, ScoredBank]
    requested: ByteCache[TextKey, ScoredBank]


class Postprocessor:
    """Tag banks and what is done with them."""

    def __init__(self, spec: ScoringSpec, texts: DeploymentHandle) -> None:
        configure_replica_logging()
        checkpoint = load_checkpoint(spec.model, spec.revision)
        self._spec = spec
        self._width = checkpoint.embedding_width
        self._head = read_similarity_head(checkpoint.folder)
        self._fingerprint = checkpoint_fingerprint(checkpoint)
        encoder = encoder_fingerprint(self._fingerprint, spec.dtype, spec.quantization)
        known = KnownRows(
            encoder, spec.cache_bytes - spec.cache_bytes // BANKS_SHARE, spec.tag_banks
        )
        self._strips_punctuation = checkpoint.strips_punctuation
        calls = InnerCalls(texts, spec.timeout_s, metrics.inner_retries().inc)
        canonicalize = partial(canonicalize_text, strip_punctuation=self._strips_punctuation)
        self._banks = BankBuilder(calls, known, self._count_rows, canonicalize)
        self._text_rows = metrics.text_rows()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="score")
        self._freed = FreedMemory()
        self._scoring = 0
        self._live: _Live | None = None
        self._refused: str | None = None
        self._asked = 0
        self._later: asyncio.Task[None] | None = None
        self._refusals = metrics.config_refusals()

    def check_health(self) -> None:
        """Return freed memory when idle; Serve calls this every 3 seconds."""
        self._freed.look(is_idle=not self._scoring)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new `TagSettings`, or keep the last good one if it cannot work. Raises only when
        there is none yet.

        If its labels cannot be encoded right now, as while the TextEncoder restarts, that is tried
        again until it works or the configuration changes once more.
        """
        self._asked += 1
        asked = self._asked
        try:
            settings = TagSettings.from_user_config(user_config)
            await self._take(settings, asked)
        except ServiceError:
            if self._live is None:
                raise
            self._later = asyncio.create_task(self._take_later(settings, asked))
        except Exception as error:
            if self._live is None:
                raise
            self._refuse(error)

    def _count_rows(self, hits: int, misses: int) -> None:
        for result, count in (("hit", hits), ("miss", misses)):
            if count:
                self._text_rows.inc(count, tags={"result": result})

    def _refuse(self, error: Exception) -> None:
        self._refused = str(error)
        self._refusals.inc()
        logger.error("the new configuration is refused, the last one stays: %s", error)

    async def _take(self, settings: TagSettings, asked: int) -> None:
        """Build the new state aside and swap it in, unless a newer one was asked for meanwhile."""
        before = self._live.banks if self._live else {}
        loaded = [scored.bank for scored in before.values()]
        banks: dict[str, ScoredBank] = {}
        for name, registered in settings.vocabularies.items():
            if registered.calibration is not None:
                registered.calibration.check_checkpoint(self._fingerprint, name)
            check_words(registered.vocabulary, self._strips_punctuation)
            same = (bank for bank in loaded if bank.vocabulary == registered.vocabulary)
            bank = next(same, None) or await self._banks.registered(registered.vocabulary, loaded)
            banks[name] = scored_bank(bank, name, registered.calibration)
        if asked == self._asked:  # else a newer one came while this one's labels were encoded
            requested = ByteCache[TextKey, ScoredBank](
                self._spec.cache_bytes // BANKS_SHARE, _bank_bytes
            )
            self._live = _Live(settings, banks, requested)
            self._refused = None

    async def _take_later(self, settings: TagSettings, asked: int) -> None:
        while asked == self._asked:
            logger.warning("the new labels cannot be encoded yet; trying again")
            await asyncio.sleep(RETRY_PAUSE_S)
            if asked != self._asked:
                return
            try:
                await self._take(settings, asked)
            except ServiceError:
                continue
            except Exception as error:
                if asked == self._asked:
                    self._refuse(error)
            return

    async def score(self, request: ScoreRequest) -> ScoreReply:
        """Tag a micro-batch of embeddings, each as its own options ask, all by the same
        configuration.
        """
        self._scoring += 1
        try:
            return await self._score(request)
        finally:
            self._scoring -= 1

    async def _score(self, request: ScoreRequest) -> ScoreReply:
        live = self._current()
        places: dict[TagOptions, list[int]] = {}
        for at, options in enumerate(request.options):
            places.setdefault(options, []).append(at)
        outcomes: list[TagOutcome] = [()] * len(request.options)
        by: list[ScoredBy | None] = [None] * len(request.options)
        for options, rows in places.items():
            found: list[TagOutcome]
            try:
                check_width(request.image_embeds, self._width)
                scored = await self._bank_for(options, live)
                rule = live.settings.rule_for(options, scored.table)
                raw_scores = live.settings.shows_raw_scores(options)
                found = await self._select(request, rows, scored, rule, raw_scores)
            except TaggerError as error:
                found = [error] * len(rows)
            else:
                own = ScoredBy(scored.name, scored.bank.fingerprint, rule.score, raw_scores)
                for row in rows:
                    by[row] = own
            for row, outcome in zip(rows, found, strict=True):
                outcomes[row] = outcome
        reply = ScoreReply(tuple(outcomes), tuple(by))
        if not is_large(reply):
            return reply
        parts = [part async for part in self._in_turns(pickles(reply.outcomes))]
        return ScoreReply((), reply.scored, tuple(parts))

    async def prepare(self, options: TagOptions) -> None:
        """Encode a request's labels while its images are being encoded; problems are told by
        `score`.
        """
        try:
            await self._bank_for(options, self._current())
        except TaggerError as error:
            logger.info("labels were not prepared: %s", error.code)

    async def embed_texts(self, texts: tuple[str, ...]) -> FloatArray:
        """Return embeddings (n, D) float32, unit norm, of texts as they are; lately asked ones are
        kept.
        """
        rows = await self._banks.rows([((), text) for text in texts])
        return np.stack([rows[(), text] for text in texts])

    async def vocabularies(self) -> tuple[VocabularyCard, ...]:
        """Return what vocabularies are scored."""
        live = self._current()
        return vocabulary_cards(live.settings, live.banks)

    async def vocabulary(self, name: str) -> PackedVocabulary:
        """Return a vocabulary with its tags; raises `UnknownVocabulary` if there is none of that
        name.
        """
        live = self._current()
        detail = vocabulary_detail(live.settings, live.banks, name)
        return await asyncio.to_thread(packed_vocabulary, detail)

    async def state(self) -> PostprocessorState:
        """Say which vocabularies are scored."""
        live = self._current()
        own = live.banks[live.settings.default_vocabulary]
        vocabularies = VocabularyState(
            live.settings.default_vocabulary,
            own.bank.fingerprint,
            len(own.table),
            tuple(live.banks),
        )
        return PostprocessorState(vocabularies, show_live(live.settings), self._refused)

    def _current(self) -> _Live:
        assert self._live is not None, "Serve calls reconfigure before it sends requests"
        return self._live

    async def _select(
        self,
        request: ScoreRequest,
        rows: list[int],
        scored: ScoredBank,
        rule: SelectionRule,
        has_raw_scores: bool,
    ) -> list[TagOutcome]:
        embeds = request.image_embeds
        views = request.views
        shares = request.shares
        if len(rows) < len(request.options):
            num_images = len(request.options)
            counts = np.ones(num_images, np.intp) if views is None else np.asarray(views)
            embeds = embeds[np.repeat(np.isin(np.arange(num_images), rows), counts)]
            views = None if views is None else tuple(views[row] for row in rows)
            shares = None if shares is None else tuple(shares[row] for row in rows)
        bound = TagBound(request.max_bytes, shares, has_raw_scores)
        blocks = tag_within(embeds, scored, self._head, rule, views, bound)
        if len(rows) <= images_at_once(
            scored, rule
        ):  # the usual micro-batch: one hop to the thread
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, next, blocks)
        return [outcome async for block in self._in_turns(blocks) for outcome in block]

    async def _in_turns(self, items: Iterator[Item]) -> AsyncIterator[Item]:
        """Make each item in the scoring thread, which other requests may use in between."""
        loop = asyncio.get_running_loop()
        while (item := await loop.run_in_executor(self._executor, next, items, None)) is not None:
            yield item

    async def _bank_for(self, options: TagOptions, live: _Live) -> ScoredBank:
        """Return the bank that a request is scored by: a registered one, or one of its own labels
        or templates.
        """
        asked = live.settings.vocabulary_for(options, self._spec.max_labels)
        if asked.key is None:
            assert asked.name is not None, "only a request's own bank has a key"
            return live.banks[asked.name]
        scored = live.requested.get(asked.key)
        if scored is not None:
            self._count_rows(len(scored.table), 0)
        else:
            check_words(asked.vocabulary, self._strips_punctuation)
            scored = scored_bank(await self._banks.for_request(asked.vocabulary), asked.name)
            live.requested.put(asked.key, scored)
        return scored


def _bank_bytes(_: TextKey, scored: ScoredBank) -> int:
    return scored.bank.nbytes + BYTES_PER_TAG * len(scored.table)
