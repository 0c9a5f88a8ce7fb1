"""A gate that lets a few pieces of heavy work through at a time, by turns between clients and their requests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve_app import observed
from serve_app.fairness.queues import FairQueue


class FairGate:
    """Lets `slots` pieces of work run at the same time; whose turn is next is decided by `FairQueue`.

    What is heavy would otherwise share the interpreter with everything else in proportion to how much of it there is.
    """

    def __init__(self, slots: int) -> None:
        """Start with nothing under way."""
        self._free = slots
        self._queue = FairQueue[asyncio.Future[None]](lambda turn: turn.done())

    @asynccontextmanager
    async def turn(self, cost: float = 1.0) -> AsyncIterator[None]:
        """Wait for the current request's turn, and hold a slot while the block runs.

        Args:
            cost: Of the work, in any unit that all who use the gate have in common.
        """
        record = observed.current()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.push(turn, cost, record.client if record else "", record.request_id if record else "")
        self._let_through()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the slot was given and the request ended in the same moment
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
