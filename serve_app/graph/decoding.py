"""The threads that decode and resize pictures, and how busy they are."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serve_app.graph.rates import Rates

Prepared = TypeVar("Prepared")


class DecodingThreads:
    """A pool of threads that prepare pictures, counted for autoscaling."""

    def __init__(self, threads: int, cpus: float) -> None:
        """Start with nothing to do.

        Args:
            threads: How many pictures are prepared at the same time.
            cpus: Of the replica; more threads than these take turns.
        """
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._cores = min(float(threads), max(0.25, cpus))
        self._rates = Rates(time.monotonic())
        self.undecoded = 0

    async def run(self, prepare: Callable[[bytes], Prepared], data: bytes) -> Prepared:
        """Prepare one picture in a thread; raises what `prepare` raises."""
        self._rates.arrive(1)
        self.undecoded += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._timed, prepare, data)
        finally:
            self.undecoded -= 1

    def read(self) -> tuple[float, float | None]:
        """Return pictures that arrive a second, and how many all cores could prepare a second, if that is known."""
        arriving, per_busy_second = self._rates.read(time.monotonic())
        return arriving, per_busy_second * self._cores if per_busy_second else None

    def _timed(self, prepare: Callable[[bytes], Prepared], data: bytes) -> Prepared:
        """Prepare one picture and count the processor time that it took."""
        started_s = time.thread_time()
        try:
            return prepare(data)
        finally:
            self._rates.work(1, time.thread_time() - started_s)
