"""`Preprocessor`: the HTTP ingress, which decodes images and calls the rest of the graph.

It implements `Tagger`. The HTTP API on top of it (`serve_app/api`) does not use Ray. This module
never imports torch.

Not here: the steps of one image (`image_pipeline.py`), micro-batches (`sending.py`).
"""

import asyncio
import logging
import math
import sys
from collections.abc import Sequence
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
from serve_app.graph import metrics
from serve_app.graph.autoscaling import ARRIVALS, PER_PREPROCESSOR, UNDECODED, WAITING
from serve_app.graph.calls import InnerCalls
from serve_app.graph.decoding_threads import DecodingBudget, DecodingThreads
from serve_app.graph.image_pipeline import ImagePipeline
from serve_app.graph.labels_ahead import LabelsAhead
from serve_app.graph.memory import FreedMemory
from serve_app.graph.messages import (
    EncoderState,
    PackedVocabulary,
    PostprocessorState,
    ScoreRequest,
    max_message_bytes,
)
from serve_app.graph.microbatch import BatchLimits
from serve_app.graph.replies import score_tags, unpacked_vocabulary
from serve_app.graph.sending import Sender
from serve_app.graph.stored_embeddings import StoredEmbeddings
from serve_app.graph.tallies import ImageTally, RequestTally
from serve_app.graph.tracing import trace_stages
from serve_app.hardware.host_memory import DECODES_AT_ONCE, MAX_WAITING_BYTES
from serve_app.hardware.plan import Plan
from serve_app.pipeline.tagged_image import ImageInput, TaggedImage
from serve_app.pipeline.tagger import (
    ModelCard,
    VocabularyCard,
    VocabularyDetail,
    make_model_card,
)
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.prepare import ImagePreparer
from serve_app.siglip.scoring import check_width
from serve_app.tagging.options import TagOptions
from serve_app.telemetry.logs import configure_replica_logging

logger = logging.getLogger(__name__)

STATE_TIMEOUT_S = 5.0
SWITCH_INTERVAL_S = 0.0005
"""Interval at which Python switches threads. With the default of 5 ms, a decoding thread waits that
long for the event loop whenever it returns from Pillow's C code, up to ten times per image."""
TIMED_OUT = "The request timed out. Retry, or send fewer images."
EMBEDDINGS_TIMED_OUT = "The request timed out. Retry, or send fewer embeddings."


class Preprocessor:
    """Deployment that receives requests, decodes images and sends micro-batches."""

    def __init__(
        self, config: ServiceConfig, plan: Plan, images: DeploymentHandle, post: DeploymentHandle
    ) -> None:
        configure_replica_logging()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._config = config
        self._plan = plan
        self._checkpoint = load_checkpoint(config.siglip.model_source, config.revision)
        retries = metrics.inner_retries()
        timeout_s = config.serving.request_timeout_s
        by_reference_bytes = config.serving.by_reference_bytes
        self._encode = InnerCalls(images, timeout_s, retries.inc, by_reference_bytes)
        self._score = InnerCalls(post, timeout_s, retries.inc, by_reference_bytes)

        preparer = ImagePreparer(
            self._checkpoint, config.image_limits(), config.siglip.max_num_patches
        )
        limits = BatchLimits(plan.batch_size, max_message_bytes(), MAX_WAITING_BYTES)
        self._sender = Sender(self._encode, self._score, limits, preparer.max_nbytes)
        budget = _decoding_budget(config, plan.deployments["preprocessor"].num_cpus)
        self._decoding = DecodingThreads(budget, lambda: self._sender.has_room)
        self._sender.call_on_room(self._decoding.dispatch)
        self._pipeline = ImagePipeline(preparer, self._decoding, self._sender, self._score)
        self._labels = LabelsAhead(self._score, self._sender.spawn)
        self._stored = StoredEmbeddings(
            self._score, max_message_bytes(), config.limits.max_response_bytes
        )

        self._refusals = metrics.config_refusals()
        self._images = ImageTally()
        self._requests = RequestTally(self._images)
        self._waiting = metrics.waiting_images()
        self._admission = Admission(config.limits)
        self._freed = FreedMemory()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the HTTP API; Serve calls this after the constructor."""
        observers = (self._requests.note, trace_stages)
        return create_app(
            self, self._config, observers, admission=self._admission, behind_serve=True
        )

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply a new `LiveBatching`; refuse an invalid one and keep the previous one."""
        try:
            self._sender.wait_s = LiveBatching.from_user_config(user_config).batch_wait_timeout_s
        except Exception as error:
            self._refusals.inc()
            logger.error("refused the new configuration; the previous one stays active: %s", error)

    def check_health(self) -> None:
        """Return freed memory when idle; Serve calls this every 3 seconds."""
        self._freed.update(is_idle=self._admission.is_idle)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Report the load to `graph/autoscaling.py`; Serve calls this a few times a second."""
        arriving, decodable = self._decoding.read()
        waiting = self._sender.waiting
        undecoded = self._decoding.undecoded
        self._waiting.set(undecoded, tags={"stage": "decode"})
        self._waiting.set(waiting, tags={"stage": "encode"})
        if not self._sender.has_room:  # undecoded images wait for an encoder too
            waiting += undecoded
            undecoded = 0
        load = {ARRIVALS: arriving, WAITING: float(waiting), UNDECODED: float(undecoded)}
        return load if decodable is None else load | {PER_PREPROCESSOR: decodable}

    async def tag(
        self, images: Sequence[ImageInput], options: TagOptions
    ) -> tuple[TaggedImage, ...]:
        """Tag encoded images; see `Tagger.tag`."""
        num_readable = sum(isinstance(image, bytes) for image in images)
        if num_readable:
            self._labels.send(options.vocabulary)
        share = self._config.limits.max_response_bytes // max(1, num_readable)
        try:
            async with asyncio.timeout(self._config.serving.request_timeout_s):
                tagged = await self._tag_all(images, options, share)
        except TimeoutError as error:
            self._images.note_timed_out(images)
            raise DeadlineExceeded(TIMED_OUT) from error

        self._images.note_all(images, tagged)
        for image in tagged:
            # all images have the same options, so an error about them applies to the request
            if image.stages is not None and isinstance(
                image.error, InvalidRequest | UnknownVocabulary
            ):
                raise image.error
        return tuple(tagged)

    async def score(self, image_embeds: FloatArray, options: TagOptions) -> tuple[TaggedImage, ...]:
        """Tag stored embeddings; large requests take turns. See `Tagger.score`."""
        check_width(image_embeds, self._checkpoint.embedding_width)
        try:
            async with asyncio.timeout(self._config.serving.request_timeout_s):
                return await self._stored.tag(image_embeds, options)
        except TimeoutError as error:
            raise DeadlineExceeded(EMBEDDINGS_TIMED_OUT) from error

    async def embed_images(
        self, images: Sequence[ImageInput]
    ) -> tuple[FloatArray | TaggerError, ...]:
        """Encode images in micro-batches that all requests share; see `Tagger.embed_images`."""
        try:
            async with asyncio.timeout(self._config.serving.request_timeout_s):
                embedded = await asyncio.gather(*[self._pipeline.embed(image) for image in images])
        except TimeoutError as error:
            self._images.note_timed_out(images)
            raise DeadlineExceeded(TIMED_OUT) from error
        self._images.note_all(images, embedded)
        return tuple(_embedding_of(image) for image in embedded)

    async def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Encode texts; see `Tagger.embed_texts`."""
        embeds: FloatArray = await self._score("embed_texts", tuple(texts))
        return embeds

    async def vocabularies(self) -> tuple[VocabularyCard, ...]:
        """Return the vocabularies of a Postprocessor; see `Tagger.vocabularies`."""
        cards: tuple[VocabularyCard, ...] = await self._score(
            "vocabularies", timeout_s=STATE_TIMEOUT_S
        )
        return cards

    async def vocabulary(self, name: str) -> VocabularyDetail:
        """Return a vocabulary of a Postprocessor; see `Tagger.vocabulary`."""
        packed: PackedVocabulary = await self._score("vocabulary", name, timeout_s=STATE_TIMEOUT_S)
        return await asyncio.to_thread(unpacked_vocabulary, packed)

    async def configuration(self) -> dict[str, Any]:
        """Return this replica's plan and a Postprocessor's settings; see `Tagger.configuration`."""
        post: PostprocessorState = await self._score("state", timeout_s=STATE_TIMEOUT_S)
        return show_config(self._config, post.shown, self._plan.shown())

    async def describe(self) -> ModelCard:
        """Return what the other deployments run; see `Tagger.describe`."""
        try:
            encoder: EncoderState
            post: PostprocessorState
            encoder, post = await asyncio.gather(
                self._encode("state", timeout_s=STATE_TIMEOUT_S),
                self._score("state", timeout_s=STATE_TIMEOUT_S),
            )
        except TaggerError as error:
            raise Unavailable("The models are not ready yet. Retry in a few seconds.") from error
        return make_model_card(
            self._config,
            self._checkpoint,
            encoder.runtime,
            self._plan.batch_size,
            post.vocabularies,
        )

    async def _tag_all(
        self, images: Sequence[ImageInput], options: TagOptions, share: int
    ) -> Sequence[TaggedImage]:
        """Tag the images of a request, all with the same version of a vocabulary."""
        if len(images) == 1:  # the usual request, which needs no separate task
            return [await self._pipeline.tag(images[0], options, share)]
        tagged = await asyncio.gather(
            *[self._pipeline.tag(image, options, share) for image in images]
        )
        if len({image.scored for image in tagged if image.scored is not None}) > 1:
            return await self._score_together(tagged, options)
        return tagged

    async def _score_together(
        self, tagged: Sequence[TaggedImage], options: TagOptions
    ) -> list[TaggedImage]:
        """Score all images of a request again in one call.

        This is needed if the vocabulary changed between their micro-batches.
        """
        encoded = [i for i, image in enumerate(tagged) if image.view_embeds is not None]
        views = [embeds for image in tagged if (embeds := image.view_embeds) is not None]
        request = ScoreRequest(
            np.concatenate(views),
            (options,) * len(views),
            tuple(len(embeds) for embeds in views),
            self._config.limits.max_response_bytes,
        )
        rescored = list(tagged)
        for i, image in zip(encoded, await score_tags(self._score, request), strict=True):
            rescored[i] = image.with_views(tagged[i].stages, tagged[i].view_embeds)
        return rescored


def _decoding_budget(config: ServiceConfig, cpus: float) -> DecodingBudget:
    scale = config.serving.preprocessor
    if scale.decode_threads == "auto":
        threads = max(2, math.ceil(cpus))
    else:
        threads = scale.decode_threads
    max_bytes = DECODES_AT_ONCE * config.limits.max_decode_bytes
    return DecodingBudget(threads, cpus, max_bytes, config.serving.request_timeout_s)


def _embedding_of(image: TaggedImage) -> FloatArray | TaggerError:
    if image.error is not None:
        return image.error
    embed = image.embed
    assert embed is not None, "an image without an error was encoded"
    return embed
