"""The threads that decode and resize pictures, and how busy they are."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serve_app.graph.rates import Rates
from serve_app.observed import StageTimes

Prepared = TypeVar("Prepared")
Prepare = Callable[[bytes, StageTimes], Prepared]


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

    async def run(self, prepare: "Prepare[Prepared]", data: bytes, times: StageTimes) -> Prepared:
        """Prepare one picture in a thread, noting how long it waited for one; raises what `prepare` raises."""
        self._rates.arrive(1)
        self.undecoded += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._timed, prepare, data, times, time.perf_counter())
        finally:
            self.undecoded -= 1

    def read(self) -> tuple[float, float | None]:
        """Return pictures that arrive a second, and how many all cores could prepare a second, if that is known."""
        arriving, per_busy_second = self._rates.read(time.monotonic())
        return arriving, per_busy_second * self._cores if per_busy_second else None

    def _timed(self, prepare: "Prepare[Prepared]", data: bytes, times: StageTimes, submitted_s: float) -> Prepared:
        """Prepare one picture and count the processor time that it took."""
        times.add("queue", submitted_s, time.perf_counter())
        started_s = time.thread_time()
        try:
            return prepare(data, times)
        finally:
            self._rates.work(1, time.thread_time() - started_s)
