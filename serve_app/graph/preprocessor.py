"""The HTTP ingress: reads the request, decodes and resizes its images, and calls the rest of the
graph in micro-batches.

It is a `Tagger`; the HTTP face on top of it (`serve_app/api`) knows nothing of Ray. It never
imports torch.
"""

import asyncio
import logging
import math
import os
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from serve_app.api.admission import Admission
from serve_app.api.app import create_app
from serve_app.config.live import LiveBatching
from serve_app.config.public import show_config
from serve_app.config.service import ServiceConfig
from serve_app.errors import (
    DeadlineExceeded,
    InvalidRequest,
    TaggerError,
    Unavailable,
    UnknownVocabulary,
)
from serve_app.fairness.gates import FairGate
from serve_app.graph import metrics
from serve_app.graph.autoscaling import ARRIVALS, PER_PREPROCESSOR, UNDECODED, WAITING
from serve_app.graph.calls import DEFAULT_MESSAGE_BYTES, InnerCalls
from serve_app.graph.decoding import DecodingBudget, DecodingThreads
from serve_app.graph.memory import FreedMemory
from serve_app.graph.messages import (
    EncoderState,
    PackedVocabulary,
    PostprocessorState,
    ScoreReply,
    ScoreRequest,
)
from serve_app.graph.microbatch import BatchLimits
from serve_app.graph.replies import score_tags, unpacked_vocabulary
from serve_app.graph.sending import Sender
from serve_app.graph.tallies import OK, ImageTally, RequestTally
from serve_app.graph.tracing import trace_stages
from serve_app.hardware.host_memory import DECODES_AT_ONCE, MAX_WAITING_BYTES
from serve_app.pipeline.bounded_tags import TagOutcome
from serve_app.pipeline.scorer import ScoredBy
from serve_app.pipeline.tagger import (
    ModelCard,
    TagAnswer,
    VocabularyCard,
    VocabularyDetail,
    make_model_card,
)
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.prepare import ImagePreparer
from serve_app.siglip.scoring import check_width
from serve_app.tagging.options import RequestedVocabulary, TagOptions
from serve_app.telemetry.logs import configure_replica_logging
from serve_app.telemetry.record import StageTimes, new_image

logger = logging.getLogger(__name__)

STATE_TIMEOUT_S = 5.0
SWITCH_INTERVAL_S = 0.0005
"""Of the interpreter; its own is 5 ms, and a decoding thread waits that long for the event loop
every time it comes back from Pillow's C code, up to ten times a picture."""
SCORE_TRIES = 3
"""Of a request in several calls, each time one vocabulary has replaced another between them."""
FEW_EMBEDDINGS = 16
"""Of a request to score, which are scored at once: as many as an ordinary micro-batch has."""
MANY_SCORES_AT_ONCE = 2
"""Larger requests to score that one Preprocessor has under way; images of others are scored in
between."""
LATE = "The request was not answered in time. Retry, or send fewer images."
REMEMBERED_OPTIONS = 1_024
"""Requests' label lists of which it is remembered that they were sent ahead to the
Postprocessor."""


@dataclass(frozen=True, slots=True)
class _Tagged:
    """One image's outcome, how long it took, what it was scored against, and its views' embeddings
    (V, D), the whole first.
    """

    outcome: TagOutcome
    times: StageTimes
    scored: ScoredBy | None = None
    embeds: FloatArray | None = None

    @property
    def views(self) -> int:
        """How often it was encoded."""
        return 0 if self.embeds is None else len(self.embeds)


class Preprocessor:
    """Ingress, decoder and sender of micro-batches."""

    def __init__(
        self, config: ServiceConfig, images: DeploymentHandle, post: DeploymentHandle
    ) -> None:
        configure_replica_logging()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._config = config
        plugin = config.siglip
        scale = config.serving.preprocessor
        self._checkpoint = load_checkpoint(plugin.model_source, config.revision)
        self._preparer = ImagePreparer(
            self._checkpoint, config.image_limits(), plugin.max_num_patches
        )
        cpus = 1.0 if scale.num_cpus == "auto" else scale.num_cpus
        threads = (
            max(2, math.ceil(cpus)) if scale.decode_threads == "auto" else scale.decode_threads
        )
        retries = metrics.inner_retries()
        timeout_s = config.serving.request_timeout_s
        self._encode = InnerCalls(images, timeout_s, retries.inc)
        self._score = InnerCalls(post, timeout_s, retries.inc)
        limits = BatchLimits(plugin.resolved_batch_size, _message_bytes(), MAX_WAITING_BYTES)
        self._sender = Sender(self._encode, self._score, limits, self._preparer.max_nbytes)
        budget = DecodingBudget(
            threads, cpus, DECODES_AT_ONCE * config.limits.max_decode_bytes, timeout_s
        )
        self._decoding = DecodingThreads(budget, lambda: self._sender.has_room)
        self._sender.call_on_room(self._decoding.dispatch)
        self._sent_ahead: OrderedDict[RequestedVocabulary, None] = OrderedDict()
        self._refusals = metrics.config_refusals()
        self._images = ImageTally()
        self._requests = RequestTally(self._images)
        self._waiting = metrics.waiting_images()
        self._many_scores = FairGate(MANY_SCORES_AT_ONCE)
        self._admission = Admission(config.limits)
        self._freed = FreedMemory()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the HTTP face; Serve calls this once the constructor is through."""
        observers = (self._requests.note, trace_stages)
        return create_app(
            self, self._config, observers, admission=self._admission, behind_serve=True
        )

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take a new `LiveBatching`; one that cannot work is refused and the last one stays."""
        try:
            self._sender.wait_s = LiveBatching.from_user_config(user_config).batch_wait_timeout_s
        except Exception as error:
            self._refusals.inc()
            logger.error("the new configuration is refused, the last one stays: %s", error)

    def check_health(self) -> None:
        """Return freed memory when idle; Serve calls this every 3 seconds."""
        self._freed.look(is_idle=self._admission.is_idle)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Serve what `graph/autoscaling.py` goes by; Serve calls this a few times a second."""
        arriving, decodable = self._decoding.read()
        self._waiting.set(self._decoding.undecoded, tags={"stage": "decode"})
        self._waiting.set(self._sender.waiting, tags={"stage": "encode"})
        waiting = self._sender.waiting
        undecoded = self._decoding.undecoded
        if not self._sender.has_room:  # they wait undecoded, but for an encoder
            waiting += undecoded
            undecoded = 0
        load = {ARRIVALS: arriving, WAITING: float(waiting), UNDECODED: float(undecoded)}
        return load if decodable is None else load | {PER_PREPROCESSOR: decodable}

    async def tag(
        self, images: Sequence[bytes], options: TagOptions, with_embeddings: bool = False
    ) -> TagAnswer:
        """Tag encoded pictures; see `Tagger.tag`."""
        self._send_labels_ahead(options)
        tag_one = self._tag_views if options.quality == "high" else self._tag_one
        share = self._config.limits.max_response_bytes // max(1, len(images))
        try:
            async with asyncio.timeout(self._config.serving.request_timeout_s):
                if len(images) == 1:  # the usual request needs no task of its own
                    tagged = [await tag_one(images[0], options, share)]
                else:
                    tagged = await asyncio.gather(
                        *[tag_one(data, options, share) for data in images]
                    )
                    if len({one.scored for one in tagged if one.scored is not None}) > 1:
                        tagged = await self._score_together(tagged, options)
        except TimeoutError as error:
            self._note_late(images)
            raise DeadlineExceeded(LATE) from error
        outcomes = tuple(one.outcome for one in tagged)
        for data, one in zip(images, tagged, strict=True):
            self._images.note(
                one.outcome.code if isinstance(one.outcome, TaggerError) else OK, data, one.times
            )
        for outcome in outcomes:
            if isinstance(
                outcome, InvalidRequest | UnknownVocabulary
            ):  # said of the options, which are the same for all
                raise outcome
        scored = next((one.scored for one in tagged if one.scored is not None), None)
        embeds = (
            tuple(None if one.embeds is None else one.embeds[0] for one in tagged)
            if with_embeddings
            else None
        )
        return TagAnswer(outcomes, scored, embeds, tuple(one.views for one in tagged))

    async def _score_together(
        self, tagged: Sequence[_Tagged], options: TagOptions
    ) -> list[_Tagged]:
        """Score all images of a request again in one call: a new vocabulary came between the
        micro-batches that they were in.
        """
        encoded = [one for one in tagged if one.embeds is not None]
        embeds = np.concatenate([one.embeds for one in encoded if one.embeds is not None])
        views = tuple(one.views for one in encoded)
        max_bytes = self._config.limits.max_response_bytes
        request = ScoreRequest(embeds, (options,) * len(encoded), views, max_bytes)
        reply = await score_tags(self._score, request)
        again = iter(zip(reply.outcomes, reply.scored, strict=True))
        rescored = list(tagged)
        for at, one in enumerate(tagged):
            if one.embeds is not None:
                outcome, scored = next(again)
                rescored[at] = _Tagged(outcome, one.times, scored, one.embeds)
        return rescored

    async def score(self, image_embeds: FloatArray, options: TagOptions) -> TagAnswer:
        """Tag stored embeddings; many of them wait for their turn. See `Tagger.score`."""
        check_width(image_embeds, self._checkpoint.embedding_width)
        try:
            async with asyncio.timeout(self._config.serving.request_timeout_s):
                if len(image_embeds) <= FEW_EMBEDDINGS:
                    return await self._score_all(image_embeds, options)
                async with self._many_scores.turn(len(image_embeds)):
                    return await self._score_all(image_embeds, options)
        except TimeoutError as error:
            raise DeadlineExceeded(
                "The request was not answered in time. Retry, or send fewer embeddings."
            ) from error

    async def _score_all(self, image_embeds: FloatArray, options: TagOptions) -> TagAnswer:
        """Tag stored embeddings in as many calls as their bytes take, all by one vocabulary."""
        max_bytes = self._config.limits.max_response_bytes
        rows = max(1, _message_bytes() // (4 * image_embeds.shape[1]))
        parts = [image_embeds[start : start + rows] for start in range(0, len(image_embeds), rows)]
        for _ in range(SCORE_TRIES):
            replies: list[ScoreReply] = await asyncio.gather(
                *[
                    score_tags(
                        self._score, ScoreRequest(part, (options,) * len(part), max_bytes=max_bytes)
                    )
                    for part in parts
                ]
            )
            outcomes = tuple(outcome for reply in replies for outcome in reply.outcomes)
            if isinstance(outcomes[0], TaggerError):  # the options are the same for all
                raise outcomes[0]
            if len({scored for reply in replies for scored in reply.scored}) == 1:
                return TagAnswer(outcomes, replies[0].scored[0])
        raise Unavailable("The vocabulary is being replaced. Try again in a second.")

    async def embed_images(self, images: Sequence[bytes]) -> tuple[FloatArray | TaggerError, ...]:
        """Encode pictures in everybody's micro-batches; see `Tagger.embed_images`."""
        try:
            async with asyncio.timeout(self._config.serving.request_timeout_s):
                return tuple(await asyncio.gather(*[self._embed_one(data) for data in images]))
        except TimeoutError as error:
            self._note_late(images)
            raise DeadlineExceeded(LATE) from error

    def _note_late(self, images: Sequence[bytes]) -> None:
        for data in images:
            self._images.note(DeadlineExceeded.code, data, None)

    async def _embed_one(self, data: bytes) -> FloatArray | TaggerError:
        times = new_image()
        try:
            cost = self._preparer.cost_of(data, views=False)
            prepared = await self._decoding.run(self._preparer.prepare, data, times, cost)
            encoded = await self._sender.encode(prepared, None, times)
        except TaggerError as error:
            self._images.note(error.code, data, times)
            return error
        self._images.note(OK, data, times)
        return encoded.embed

    async def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Have texts encoded; see `Tagger.embed_texts`."""
        embeds: FloatArray = await self._score("embed_texts", tuple(texts))
        return embeds

    async def vocabularies(self) -> tuple[VocabularyCard, ...]:
        """Ask a Postprocessor; see `Tagger.vocabularies`."""
        cards: tuple[VocabularyCard, ...] = await self._score(
            "vocabularies", timeout_s=STATE_TIMEOUT_S
        )
        return cards

    async def vocabulary(self, name: str) -> VocabularyDetail:
        """Ask a Postprocessor; see `Tagger.vocabulary`."""
        packed: PackedVocabulary = await self._score("vocabulary", name, timeout_s=STATE_TIMEOUT_S)
        return await asyncio.to_thread(unpacked_vocabulary, packed)

    async def configuration(self) -> dict[str, Any]:
        """Return the plan that this replica was built by, with the live settings of a
        Postprocessor; see `Tagger.configuration`.
        """
        post: PostprocessorState = await self._score("state", timeout_s=STATE_TIMEOUT_S)
        return show_config(self._config, post.shown)

    async def describe(self) -> ModelCard:
        """Ask the other deployments what they run; see `Tagger.describe`."""
        try:
            encoder: EncoderState
            post: PostprocessorState
            encoder, post = await asyncio.gather(
                self._encode("state", timeout_s=STATE_TIMEOUT_S),
                self._score("state", timeout_s=STATE_TIMEOUT_S),
            )
        except TaggerError as error:
            raise Unavailable(
                "The models are not ready yet. Try again in a few seconds."
            ) from error
        return make_model_card(self._config, self._checkpoint, encoder.runtime, post.vocabularies)

    async def _tag_one(self, data: bytes, options: TagOptions, share: int) -> _Tagged:
        """Tag the whole of a picture."""
        times = new_image()
        try:
            cost = self._preparer.cost_of(data, views=False)
            prepared = await self._decoding.run(self._preparer.prepare, data, times, cost)
            encoded = await self._sender.encode(prepared, options, times, share)
            assert encoded.call is not None, "an item with options is scored with its micro-batch"
            with times.timed("score"):
                reply = await asyncio.shield(encoded.call)
        except TaggerError as error:
            return _Tagged(error, times)
        return _Tagged(
            reply.outcomes[encoded.at], times, reply.scored[encoded.at], encoded.embed[None]
        )

    async def _tag_views(self, data: bytes, options: TagOptions, share: int) -> _Tagged:
        """Tag a picture by the whole of it and its tiles, which go into the same micro-batches as
        everybody's images.
        """
        times = new_image()
        try:
            cost = self._preparer.cost_of(data, views=True)
            views = await self._decoding.run(self._preparer.prepare_views, data, times, cost)
            encoded = await asyncio.gather(
                *[self._sender.encode(view, None, times) for view in views]
            )
            embeds = np.stack([one.embed for one in encoded])
            with times.timed("score"):
                request = ScoreRequest(embeds, (options,), (len(views),), shares=(share,))
                reply = await score_tags(self._score, request)
        except TaggerError as error:
            return _Tagged(error, times)
        return _Tagged(reply.outcomes[0], times, reply.scored[0], embeds)

    def _send_labels_ahead(self, options: TagOptions) -> None:
        """Have a request's own labels encoded while its images are; skipped for those sent
        lately.
        """
        key = options.vocabulary
        if key.is_registered:
            return
        if key not in self._sent_ahead:
            self._sender.spawn(self._score("prepare", key))
        self._sent_ahead[key] = None
        self._sent_ahead.move_to_end(key)
        while len(self._sent_ahead) > REMEMBERED_OPTIONS:
            self._sent_ahead.popitem(last=False)


def _message_bytes() -> int:
    """Return the most pixels in bytes that one message may carry: Serve's bound, less a tenth for
    the rest of it.
    """
    bound = int(os.environ.get("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", DEFAULT_MESSAGE_BYTES))
    return bound * 9 // 10
