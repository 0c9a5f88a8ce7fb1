"""`ForwardPasses`: the threads in which an ImageEncoder runs its tower.

One thread starts forward passes and another one waits for their embeddings. While a GPU computes
one batch, the pixels of the next one are copied and its kernels are queued, so the GPU is never
idle while a batch waits. On a CPU a forward pass is complete when it has started, so one thread is
enough.

No Ray here.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from serve_app.siglip.inputs import FloatArray, ImageBatch, concatenate
from serve_app.siglip.outcomes import EncodedImages, encode_apart

MAX_STARTED = 2
"""Number of batches that may be started and not fetched: one is computed, and one waits for it."""


class Tower(Protocol):
    """What is needed of an `ImageTower`."""

    @property
    def is_asynchronous(self) -> bool:
        """Whether `encode_later` returns before the device has computed the embeddings."""

    def encode(self, batch: ImageBatch) -> FloatArray:
        """Return image_embeds (B, D)."""

    def encode_later(self, batch: ImageBatch) -> Callable[[], FloatArray]:
        """Start to encode a batch; the result waits for its embeddings."""


@dataclass(frozen=True, slots=True)
class _Started:
    """A forward pass that was started: its batch, when that was, and the call that ends it."""

    batch: ImageBatch
    started_s: float
    fetch: Callable[[], FloatArray]


class ForwardPasses:
    """Runs forward passes of one tower, at most `MAX_STARTED` at a time."""

    def __init__(self, tower: Tower, width: int, count: Callable[[int, float, bool], None]) -> None:
        """Start with nothing to do.

        Args:
            tower: The tower.
            width: Width D of its embeddings.
            count: Called after each forward pass with its number of images, the seconds that the
                device spent on it, and whether any of its images was encoded.
        """
        self._tower = tower
        self._width = width
        self._count = count
        self._starting = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._fetching = ThreadPoolExecutor(1, thread_name_prefix="fetch")
        self._places = asyncio.Semaphore(MAX_STARTED)
        self._using_tower = threading.Lock()  # after an error both threads need the tower
        self._last_ended_s = 0.0

    async def encode(self, batches: Sequence[ImageBatch]) -> EncodedImages:
        """Encode some batches as one; an image that cannot be encoded has an error instead."""
        loop = asyncio.get_running_loop()
        if not self._tower.is_asynchronous:
            return await loop.run_in_executor(self._starting, self._run, batches)
        async with self._places:
            started = await loop.run_in_executor(self._starting, self._start, batches)
            return await loop.run_in_executor(self._fetching, self._finish, started)

    def _run(self, batches: Sequence[ImageBatch]) -> EncodedImages:
        return self._finish(self._start(batches))

    def _start(self, batches: Sequence[ImageBatch]) -> _Started:
        """Start a forward pass; if that fails, the error is raised when it is fetched."""
        started_s = time.perf_counter()
        batch = concatenate(batches)
        try:
            with self._using_tower:
                return _Started(batch, started_s, self._tower.encode_later(batch))
        except Exception as error:
            return _Started(batch, started_s, partial(_raise, error))

    def _finish(self, started: _Started) -> EncodedImages:
        """Wait for a forward pass; if it failed, encode parts of the batch again."""

        def encode(part: ImageBatch) -> FloatArray:
            if part is started.batch:
                return started.fetch()
            with self._using_tower:
                return self._tower.encode(part)

        encoded = encode_apart(encode, started.batch, self._width)
        ended_s = time.perf_counter()
        # a batch that was started ahead waited for the one before it
        seconds = ended_s - max(started.started_s, self._last_ended_s)
        self._last_ended_s = ended_s
        self._count(len(encoded), seconds, any(error is None for error in encoded.errors))
        return encoded


def _raise(error: Exception) -> FloatArray:
    raise error
