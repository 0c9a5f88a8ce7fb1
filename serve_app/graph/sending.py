"""Sending views to the encoder in micro-batches that many requests share, and their embeddings on
to be scored.

What is started here belongs to no request: Serve cancels the calls that a request has made when its
client leaves, and others may wait for the same ones.
"""

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from serve_app.errors import TaggerError
from serve_app.graph.calls import InnerCalls
from serve_app.graph.messages import EncodeReply, ScoreReply, ScoreRequest
from serve_app.graph.microbatch import BatchLimits, MicroBatcher
from serve_app.graph.replies import score_tags
from serve_app.siglip.inputs import FloatArray, PreparedImage, collate
from serve_app.tagging.options import RequestedVocabulary, TagOptions
from serve_app.telemetry.record import StageTimes

logger = logging.getLogger(__name__)

LEAD_S = 0.02
"""A micro-batch leaves this long before the encoder is expected to be free: a hop takes 5 to 15 ms
on a busy machine."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded image: its embedding (D,), when its call to the encoder began and ended, and the
    call that scores its micro-batch with the image's place in it, if one does.
    """

    embed: FloatArray
    started_s: float
    ended_s: float
    call: "asyncio.Task[ScoreReply] | None" = None
    at: int = 0


_Item = tuple[PreparedImage, TagOptions | None, int]
"""A prepared view, the options to score it by, and its tags' share of the response in bytes. No
options and no share where it is one view of several, which are scored together."""


class Sender:
    """Gathers views, has them encoded, and starts the scoring of those that are scored with their
    micro-batch.
    """

    def __init__(
        self, encode: InnerCalls, score: InnerCalls, limits: BatchLimits, max_nbytes: int
    ) -> None:
        """Start with nothing to send.

        Args:
            encode: Calls of the ImageEncoder.
            score: Calls of the Postprocessor.
            limits: Of a micro-batch, and of what may wait for one.
            max_nbytes: Of one prepared view.
        """
        self._encode = encode
        self._score = score
        self._max_nbytes = max_nbytes
        self._batcher = MicroBatcher[_Item, Encoded](
            self._encode_batch, limits, wait_s=0.0, lead_s=LEAD_S
        )
        self._background: set[asyncio.Task[Any]] = set()
        self._context = contextvars.copy_context()

    @property
    def waiting(self) -> int:
        """Views that are in no call yet."""
        return self._batcher.waiting

    @property
    def has_room(self) -> bool:
        """Whether few enough views wait that more may be decoded: what waits decoded is served in
        the order in which it came.
        """
        return self._batcher.has_room

    def call_on_room(self, call: Callable[[], None]) -> None:
        """Have a function called when views have left."""
        self._batcher.on_room = call

    @property
    def wait_s(self) -> float:
        """How long a micro-batch gathers while the encoder is idle."""
        return self._batcher.wait_s

    @wait_s.setter
    def wait_s(self, seconds: float) -> None:
        self._batcher.wait_s = seconds

    async def encode(
        self, view: PreparedImage, options: TagOptions | None, times: StageTimes, share: int = 0
    ) -> Encoded:
        """Have a view encoded in some micro-batch, noting how long it waited for one and how long
        that took.

        It is scored with the micro-batch by its options, and its tags may take `share` bytes of the
        response. Without options it is one view of several, which are scored together.
        """
        submitted_s = time.perf_counter()
        encoded = await self._batcher.submit((view, options, share), self._max_nbytes)
        times.add("queue", submitted_s, encoded.started_s)
        times.add("encode", encoded.started_s, encoded.ended_s)
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

    async def _encode_batch(self, items: Sequence[_Item]) -> list[Encoded | Exception]:
        """Encode a micro-batch; its scoring is started and not waited for, so that the encoder gets
        its next one.
        """
        started_s = time.perf_counter()
        reply: EncodeReply = await self._encode("encode", collate([image for image, _, _ in items]))
        ended_s = time.perf_counter()
        self._batcher.receivers = max(1, reply.replicas)
        embeds = reply.images.image_embeds
        results: list[Encoded | Exception] = [
            error or Encoded(embeds[at], started_s, ended_s)
            for at, error in enumerate(reply.images.errors)
        ]
        # labels that came with a request are scored apart: others must not wait until those are
        # encoded
        groups: dict[RequestedVocabulary | None, list[int]] = {}
        for at, (_, options, _) in enumerate(items):
            if options is not None and isinstance(results[at], Encoded):
                own = None if options.vocabulary.is_registered else options.vocabulary
                groups.setdefault(own, []).append(at)
        for rows in groups.values():
            part = embeds if len(rows) == len(items) else embeds[rows]
            asked = tuple(options for at in rows if (options := items[at][1]) is not None)
            shares = tuple(items[at][2] for at in rows)
            call = self.spawn(score_tags(self._score, ScoreRequest(part, asked, shares=shares)))
            for place, at in enumerate(rows):
                results[at] = Encoded(embeds[at], started_s, ended_s, call, place)
        return results
