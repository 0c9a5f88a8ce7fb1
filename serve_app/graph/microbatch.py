"""Micro-batches: items of concurrent requests in few large calls, whose content is decided late.

Serve's own batcher cuts a batch when its timer ends, whether or not the model is free, and lets the
pieces queue (64 requests a second in a trial where late binding reached 603). Here the sender
gathers: the next batch grows while a call is under way, and is sent when it is full or the receiver
is idle.

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
"""Fraction of a call's duration by which the next call may be sent ahead of its end."""


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
    """Limits on one call, and on what waits for one.

    Attributes:
        max_batch_size: Sum of the items' sizes in a call; a larger item is sent alone.
        max_batch_bytes: Payload of a call in bytes; a larger item is sent alone.
        max_waiting_bytes: Payload that may wait; more is refused.
    """

    max_batch_size: int
    max_batch_bytes: int
    max_waiting_bytes: int


class MicroBatcher(Generic[Item, Result]):
    """Feeds items from many callers to one batch function.

    A batch is sent when it is full and fewer than two calls per receiver are under way, or when a
    receiver is idle and the oldest item has waited `wait_s`. So one call runs while a full one is
    queued behind it. A batch that is not full is sent `lead_s` before the running call is expected
    to end, so that it arrives when the receiver is free and the receiver does not wait for the
    message.

    Attributes:
        limits: Limits on a batch, and on what waits for one.
        wait_s: How long a batch fills while a receiver is idle.
        lead_s: How long before a receiver is expected to be free the next batch is sent.
        receivers: Number of receivers, which work on one batch each.
        on_room: Called when items were sent, and others may follow.
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
        # Serve cancels what a request has started when its client leaves. A call belongs to many
        # requests, so it runs in the context of none.
        self._context = contextvars.copy_context()

    @property
    def waiting(self) -> int:
        """Number of items that are in no call yet."""
        return len(self._waiting)

    @property
    def has_room(self) -> bool:
        """Whether less than a batch per receiver and less than half of the allowed bytes wait."""
        has_places = self._waiting_size < self.receivers * self.limits.max_batch_size
        return has_places and self._waiting_bytes < self.limits.max_waiting_bytes // 2

    async def submit(self, item: Item, nbytes: int, size: int = 1) -> Result:
        """Return the result of one item, or raise its error.

        An item is dropped if its caller is cancelled before its call is sent.

        Args:
            item: The item.
            nbytes: Its payload in bytes.
            size: Its size: the number of its images if it is a batch itself.

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
        """Return when a call may follow the running ones: just before one is expected to end."""
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
