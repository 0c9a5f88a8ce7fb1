"""Gathering what concurrent requests have ready into few large calls, and deciding late what goes
into each.

Serve's own batcher cuts a batch when its timer ends, whether or not the model is free, and lets the
pieces queue (64 requests a second in a trial where late binding reached 603). So the sender
gathers: while a call is under way the next one grows, and it leaves when it is full or the other
side has nothing to do.

No Ray here.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from serve_app.errors import InferenceFailed, Overloaded
from serve_app.graph.turns import Turns

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_LEAD = 0.4
"""Of a call's duration: the most by which the next one may leave ahead of its end."""


@dataclass(slots=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    nbytes: int
    size: int
    arrived_s: float
    future: "asyncio.Future[Result]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one call may carry, and how many may wait for one.

    Attributes:
        max_batch_size: Sum of the items' sizes; a single larger item still goes alone.
        max_batch_bytes: Payload of a call in bytes; the same.
        max_waiting_bytes: Payload that waits at most; more is refused.
    """

    max_batch_size: int
    max_batch_bytes: int
    max_waiting_bytes: int


class MicroBatcher(Generic[Item, Result]):
    """Feeds items from many callers to one batch function.

    A batch leaves when it is full and fewer than two calls per receiver are under way, or when a
    receiver is idle and the oldest item has waited `wait_s`. So one call runs while a full one is
    queued behind it. One that is not full follows the running one `lead_s` before that is expected
    to end, so that the receiver has it when it is free: the way there and back, during which it
    would have nothing to do, is then under way while it works.

    Attributes:
        limits: Of a batch, and of what waits for one.
        wait_s: How long a batch gathers while a receiver is idle.
        lead_s: How long before a receiver is expected to be free the next batch leaves.
        receivers: How many work on one batch each.
        on_room: Called when items have left, and others may follow.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        limits: BatchLimits,
        wait_s: float,
        lead_s: float = 0.0,
    ) -> None:
        self.limits = limits
        self.wait_s = wait_s
        self.lead_s = lead_s
        self.receivers = 1
        self.on_room: Callable[[], None] = lambda: None
        self._run = run
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._waiting_bytes = self._waiting_size = 0
        self._turns = Turns()
        self._timer: asyncio.TimerHandle | None = None
        self._woken_s = 0.0
        self._calls: set[asyncio.Task[None]] = set()
        # a call is everybody's: in the context of the request that happened to start it, Serve
        # would cancel it with that one
        self._context = contextvars.copy_context()

    @property
    def waiting(self) -> int:
        """Items that are in no call yet."""
        return len(self._waiting)

    @property
    def has_room(self) -> bool:
        """Whether less than one batch for each receiver waits, and half of the bytes that may wait
        are free.
        """
        has_places = self._waiting_size < self.receivers * self.limits.max_batch_size
        return has_places and self._waiting_bytes < self.limits.max_waiting_bytes // 2

    async def submit(self, item: Item, nbytes: int, size: int = 1) -> Result:
        """Wait for the result of one item; raise what the batch function returned or raised for it.

        `size` is what the item counts for: its images, where an item is a batch itself.

        An item whose caller is cancelled before its call leaves is dropped.

        Raises:
            Overloaded: Too many items wait already.
        """
        if self._waiting and self._waiting_bytes + nbytes > self.limits.max_waiting_bytes:
            raise Overloaded("Too many images are waiting. Try again in a second.")
        entry: _Waiting[Item, Result] = _Waiting(
            item, nbytes, size, asyncio.get_running_loop().time()
        )
        self._waiting.append(entry)
        self._waiting_bytes += nbytes
        self._waiting_size += size
        self._dispatch()
        return await entry.future

    def _dispatch(self) -> None:
        while self._waiting and self._may_leave():
            self._start(self._cut())

    def _may_leave(self) -> bool:
        under_way = len(self._turns)
        if under_way >= 2 * self.receivers:
            return False
        if self._is_full():
            return True
        loop = asyncio.get_running_loop()
        leaves_s = self._waiting[0].arrived_s + self.wait_s
        if under_way >= self.receivers:
            leads_s = self._leads_s()
            if leads_s is None:
                return False
            leaves_s = max(leaves_s, leads_s)
        if leaves_s <= max(loop.time(), self._woken_s):
            return True
        if self._timer is not None and self._timer.when() > leaves_s:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = loop.call_at(leaves_s, self._wake, leaves_s)
        return False

    def _leads_s(self) -> float | None:
        """Return when a call may follow the running ones, a little before one of them is expected
        back.
        """
        free_s = self._turns.next_end_s()
        seconds = self._turns.seconds
        if not self.lead_s or free_s is None or seconds is None:
            return None
        return free_s - min(self.lead_s, MAX_LEAD * seconds)

    def _wake(self, leaves_s: float) -> None:
        self._timer = None
        self._woken_s = leaves_s
        self._dispatch()

    def _is_full(self) -> bool:
        return (
            self._waiting_size >= self.limits.max_batch_size
            or self._waiting_bytes >= self.limits.max_batch_bytes
        )

    def _cut(self) -> list[_Waiting[Item, Result]]:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        batch: list[_Waiting[Item, Result]] = []
        nbytes = size = 0
        while self._waiting:
            entry = self._waiting[0]
            fits = (
                size + entry.size <= self.limits.max_batch_size
                and nbytes + entry.nbytes <= self.limits.max_batch_bytes
            )
            if batch and not fits:
                break
            self._waiting.popleft()
            self._waiting_bytes -= entry.nbytes
            self._waiting_size -= entry.size
            if not entry.future.done():  # its caller is still there
                batch.append(entry)
                nbytes = nbytes + entry.nbytes
                size = size + entry.size
        self.on_room()
        return batch

    def _start(self, batch: list[_Waiting[Item, Result]]) -> None:
        if not batch:
            return
        self._turns.start(asyncio.get_running_loop().time(), self.receivers)
        call = asyncio.get_running_loop().create_task(
            self._call(batch), context=self._context.copy()
        )
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _call(self, batch: list[_Waiting[Item, Result]]) -> None:
        succeeded = False
        try:
            results = await self._run([entry.item for entry in batch])
            succeeded = True
            for entry, result in zip(batch, results, strict=True):
                _settle(entry.future, result)
        except Exception as error:
            for entry in batch:
                _settle(entry.future, error)
        finally:
            for entry in batch:  # only if this call itself was cancelled
                _settle(entry.future, InferenceFailed("The call was cancelled."))
            self._turns.end(asyncio.get_running_loop().time(), succeeded)
            self._dispatch()


def _settle(future: "asyncio.Future[Result]", result: Result | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
