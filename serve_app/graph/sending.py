"""Sends views to the encoder in micro-batches, and their embeddings to the Postprocessor.

Serve cancels the calls of a request when its client disconnects. Many requests share a micro-batch,
so its calls run in the context of no request.
"""

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from serve_app.errors import TaggerError
from serve_app.graph.calls import InnerCalls
from serve_app.graph.messages import EncodeReply, ScoreRequest
from serve_app.graph.microbatch import BatchLimits, MicroBatcher
from serve_app.graph.replies import score_tags
from serve_app.pipeline.tagged_image import TaggedImage
from serve_app.siglip.inputs import FloatArray, PreparedImage, collate
from serve_app.tagging.options import RequestedVocabulary, TagOptions
from serve_app.telemetry.record import StageTimes

logger = logging.getLogger(__name__)

LEAD_S = 0.02
"""A micro-batch is sent this long before the encoder is expected to be free, because a message
takes 5 to 15 ms on a busy machine."""

ScoreCall = asyncio.Task[Sequence[TaggedImage]]
"""A call that scores images of a micro-batch."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded view.

    Attributes:
        embed: Its embedding (D,).
        started_s: Start time of the call to the encoder.
        ended_s: End time of that call.
        call: The call that scores it; None if it is scored later, together with other views.
        index: Its index in that call.
    """

    embed: FloatArray
    started_s: float
    ended_s: float
    call: ScoreCall | None = None
    index: int = 0

    async def tagged(self) -> TaggedImage:
        """Return its tags after the scoring call, which other views may wait for too."""
        assert self.call is not None, "a view with options is scored with its micro-batch"
        images = await asyncio.shield(self.call)
        return images[self.index]


class _View(NamedTuple):
    """A view that waits for a micro-batch.

    Attributes:
        prepared: The view.
        options: Options for scoring it; None if it is scored later, together with other views.
        share: Maximum size of its tags in the response, in bytes.
    """

    prepared: PreparedImage
    options: TagOptions | None
    share: int


class Sender:
    """Gathers views, sends them to the encoder, and starts to score their embeddings.

    If an image has several views, the caller scores them together.
    """

    def __init__(
        self, encode: InnerCalls, score: InnerCalls, limits: BatchLimits, max_nbytes: int
    ) -> None:
        """Start with nothing to send.

        Args:
            encode: Calls to the ImageEncoder.
            score: Calls to the Postprocessor.
            limits: Limits on a micro-batch, and on the waiting views.
            max_nbytes: Maximum size of one prepared view in bytes.
        """
        self._encode = encode
        self._score = score
        self._max_nbytes = max_nbytes
        self._batcher = MicroBatcher[_View, Encoded](
            self._encode_batch, limits, wait_s=0.0, lead_s=LEAD_S
        )
        self._background: set[asyncio.Task[Any]] = set()
        self._context = contextvars.copy_context()

    @property
    def waiting(self) -> int:
        """Number of views that are not in a call yet."""
        return self._batcher.waiting

    @property
    def has_room(self) -> bool:
        """Whether so few views wait that more may be decoded.

        Decoded views are sent in order of arrival, so clients take turns before decoding.
        """
        return self._batcher.has_room

    def call_on_room(self, call: Callable[[], None]) -> None:
        """Register a function to call after views are sent."""
        self._batcher.on_room = call

    @property
    def wait_s(self) -> float:
        """How long a micro-batch fills while the encoder is idle."""
        return self._batcher.wait_s

    @wait_s.setter
    def wait_s(self, seconds: float) -> None:
        self._batcher.wait_s = seconds

    async def encode(
        self, view: PreparedImage, options: TagOptions | None, stages: StageTimes, share: int = 0
    ) -> Encoded:
        """Encode a view in a micro-batch, and record how long each step took.

        Args:
            view: The prepared view.
            options: Options for scoring it with its micro-batch; None if the caller scores it
                together with other views.
            stages: The record of the image's stages.
            share: Maximum size of its tags in the response, in bytes.
        """
        submitted_s = time.perf_counter()
        encoded = await self._batcher.submit(_View(view, options, share), self._max_nbytes)
        stages.add("queue", submitted_s, encoded.started_s)
        stages.add("encode", encoded.started_s, encoded.ended_s)
        return encoded

    def spawn(self, coroutine: Any) -> "asyncio.Task[Any]":
        """Start a call that several requests may wait for."""
        task = asyncio.get_running_loop().create_task(coroutine, context=self._context.copy())
        self._background.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self._background.discard(task)
        if not task.cancelled() and isinstance(task.exception(), TaggerError):
            logger.info("a call ended with %s", task.exception())

    async def _encode_batch(self, views: Sequence[_View]) -> list[Encoded | Exception]:
        """Encode a micro-batch, and start its scoring.

        This does not wait for the scoring, so that the encoder gets its next micro-batch.
        """
        started_s = time.perf_counter()
        batch = collate([view.prepared for view in views])
        reply: EncodeReply = await self._encode("encode", batch, nbytes=batch.nbytes)
        ended_s = time.perf_counter()
        self._batcher.receivers = max(1, reply.replicas)

        embeds = reply.images.image_embeds
        results: list[Encoded | Exception] = [
            error or Encoded(embed, started_s, ended_s)
            for embed, error in zip(embeds, reply.images.errors, strict=True)
        ]
        for rows in _scored_together(views, results):
            part = embeds if len(rows) == len(views) else embeds[rows]
            call = self._start_scoring(part, [views[i] for i in rows])
            for index, i in enumerate(rows):
                results[i] = Encoded(embeds[i], started_s, ended_s, call, index)
        return results

    def _start_scoring(self, image_embeds: FloatArray, views: Sequence[_View]) -> ScoreCall:
        options = tuple(view.options for view in views if view.options is not None)
        request = ScoreRequest(image_embeds, options, shares=tuple(view.share for view in views))
        return self.spawn(score_tags(self._score, request))


def _scored_together(
    views: Sequence[_View], results: Sequence[Encoded | Exception]
) -> list[list[int]]:
    """Return groups of indices of encoded views; each group is scored in one call.

    Views with labels of their own request are separate groups, because other requests must not wait
    until these labels are encoded.
    """
    groups: dict[RequestedVocabulary | None, list[int]] = {}
    for i, (view, result) in enumerate(zip(views, results, strict=True)):
        if view.options is None or isinstance(result, Exception):
            continue
        requested = view.options.vocabulary
        groups.setdefault(None if requested.is_registered else requested, []).append(i)
    return list(groups.values())
