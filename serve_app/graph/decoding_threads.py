"""The threads that decode images, with fair turns, a memory budget and load statistics."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from serve_app.errors import Overloaded
from serve_app.fairness.budgets import SharedBudget
from serve_app.fairness.queues import FairQueue
from serve_app.graph.rates import Rates
from serve_app.images.cost import DecodeCost
from serve_app.telemetry import record as telemetry
from serve_app.telemetry.record import StageTimes

Prepared = TypeVar("Prepared")
Prepare = Callable[[bytes, StageTimes], Prepared]

SECONDS_OF_COST = 0.075
"""CPU seconds for a cost of 1, the cost of a 12-megapixel JPEG.

Measured on an EPYC at 2.6 GHz (bench/decode_cost.py).
"""
TOO_MANY_IMAGES = (
    "More images are waiting than can be decoded within the time limit of a request. Retry after "
    "the time in Retry-After."
)


@dataclass(frozen=True, slots=True)
class DecodingBudget:
    """Resources that one process may spend on decoding.

    Attributes:
        threads: Number of images that are decoded at the same time.
        cpus: CPUs of the replica, which all threads share.
        max_bytes: Maximum predicted memory of the images being decoded; an image that needs more is
            decoded alone.
        max_waiting_s: Maximum time in seconds that all CPUs together need for the waiting images.
    """

    threads: int
    cpus: float
    max_bytes: int
    max_waiting_s: float


class _Job:
    """An image that waits for a thread or is being decoded."""

    __slots__ = ("client", "cost", "data", "done", "prepare", "submitted_s", "times")

    def __init__(
        self, prepare: "Prepare[Any]", data: bytes, times: StageTimes, cost: DecodeCost, client: str
    ) -> None:
        self.prepare: Prepare[Any] = prepare
        self.data = data
        self.times = times
        self.cost = cost
        self.client = client
        self.submitted_s = time.perf_counter()
        self.done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()


class DecodingThreads:
    """A pool of threads that prepare images.

    Clients take turns, and the load is measured for autoscaling.

    An image whose request has ended is dropped before its turn. A thread cannot be stopped, so
    callers check the cost of every image first.
    """

    def __init__(self, budget: DecodingBudget, has_room: Callable[[], bool] = lambda: True) -> None:
        """Start with nothing to do.

        Args:
            budget: The decoding budget of this process.
            has_room: Returns whether prepared images can be passed on; images wait while it returns
                False. Call `dispatch` when there is room again.
        """
        self._executor = ThreadPoolExecutor(budget.threads, thread_name_prefix="decode")
        self._budget = budget
        self._cores = min(float(budget.threads), max(0.25, budget.cpus))
        self._has_room = has_room
        self._rates = Rates(time.monotonic())
        self._queue = FairQueue[_Job](lambda job: job.done.done())
        self._waiting = SharedBudget(budget.max_waiting_s * self._cores)
        self._running = 0
        self._running_bytes = 0
        self.undecoded = 0

    async def run(
        self, prepare: "Prepare[Prepared]", data: bytes, times: StageTimes, cost: DecodeCost
    ) -> "Prepared":
        """Prepare one image in a thread, and record how long it waited.

        Raises:
            Overloaded: More images wait than can be decoded in time, and this client already has
                its share of them.
            Exception: Any error of `prepare`.
        """
        record = telemetry.current()
        client = record.client if record is not None else ""
        seconds = cost.usual * SECONDS_OF_COST
        if not self._waiting.take(client, seconds):
            excess_s = self._waiting.held - self._waiting.capacity / 2
            raise Overloaded(TOO_MANY_IMAGES, retry_after_s=excess_s / self._cores)
        job = _Job(prepare, data, times, cost, client)
        self._rates.arrive(1)
        self.undecoded += 1
        try:
            request_id = record.request_id if record is not None else ""
            self._queue.push(job, cost.cost, client, request_id)
            self.dispatch()
            prepared: Prepared = await job.done
            return prepared
        finally:
            job.data = b""  # a dropped job stays in the queue until its turn
            self.undecoded -= 1
            self._waiting.give_back(client, seconds)

    def dispatch(self) -> None:
        """Start to decode images while threads, memory and room allow it."""
        while self._running < self._budget.threads and self._has_room():
            job = self._queue.peek()
            if job is None:
                return
            if self._running and self._running_bytes + job.cost.nbytes > self._budget.max_bytes:
                return
            self._queue.pop()
            self._start(job)

    def read(self) -> tuple[float, float | None]:
        """Return arriving images per second, and the rate that all cores could prepare.

        The second rate is None while it is unknown.
        """
        arriving, per_busy_second = self._rates.read(time.monotonic())
        return arriving, per_busy_second * self._cores if per_busy_second else None

    def _start(self, job: _Job) -> None:
        self._running += 1
        self._running_bytes += job.cost.nbytes
        loop = asyncio.get_running_loop()
        future = self._executor.submit(self._timed, job)
        # the thread continues after the request has ended, and holds its memory until it finishes
        future.add_done_callback(lambda ended: loop.call_soon_threadsafe(self._end, job, ended))

    def _end(self, job: _Job, future: "Future[Any]") -> None:
        self._running -= 1
        self._running_bytes -= job.cost.nbytes
        if not job.done.done():
            error = future.exception()
            if error is None:
                job.done.set_result(future.result())
            else:
                job.done.set_exception(error)
        self.dispatch()

    def _timed(self, job: _Job) -> Any:
        """Prepare one image and record its CPU time."""
        job.times.add("queue", job.submitted_s, time.perf_counter())
        started_s = time.thread_time()
        try:
            return job.prepare(job.data, job.times)
        finally:
            self._rates.work(1, time.thread_time() - started_s)
