"""A gate that limits how much heavy work runs at the same time; clients take turns."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve_app.fairness.queues import FairQueue
from serve_app.telemetry import record as telemetry


class FairGate:
    """Lets at most `slots` tasks run at the same time, in the order of a `FairQueue`.

    Without a gate, a client with more heavy work would get a larger share of the interpreter.
    """

    def __init__(self, slots: int) -> None:
        """Start with no work in progress."""
        self._free = slots
        self._queue = FairQueue[asyncio.Future[None]](lambda turn: turn.done())

    @asynccontextmanager
    async def turn(self, cost: float = 1.0) -> AsyncIterator[None]:
        """Wait for the current request's turn, and hold a slot while the block runs.

        Args:
            cost: Cost of the work, in a unit that all users of the gate share.
        """
        record = telemetry.current()
        client = record.client if record else ""
        request_id = record.request_id if record else ""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.push(turn, cost, client, request_id)
        self._let_through()
        try:
            await turn
        except asyncio.CancelledError:
            # the request may have been cancelled just after it got the slot
            if turn.done() and not turn.cancelled():
                self._end()
            raise
        try:
            yield
        finally:
            self._end()

    def _end(self) -> None:
        self._free += 1
        self._let_through()

    def _let_through(self) -> None:
        while self._free:
            turn = self._queue.pop()
            if turn is None:
                return
            self._free -= 1
            turn.set_result(None)
