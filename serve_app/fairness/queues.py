"""A queue in which clients take turns, and the requests of each client take turns.

The client that has received the least work is next. A client that joins starts with the amount of
work of the last turn, so that it gains nothing by leaving and joining again. This module uses
neither Ray nor a clock.

Source: self-clocked fair queueing, S. J. Golestani, "A Self-Clocked Fair Queueing Scheme for
Broadband Applications", INFOCOM 1994.
"""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Member = TypeVar("Member")


@dataclass(order=True, slots=True)
class _Turn(Generic[Member]):
    """The position of a member, ordered by the work that it has received."""

    work: float
    number: int
    member: Member = field(compare=False)


class _Turns(Generic[Member]):
    """Members that take turns, ordered by the work that they have received."""

    def __init__(self) -> None:
        self._heap: list[_Turn[Member]] = []
        self._joined = 0
        self._work = 0.0

    def __bool__(self) -> bool:
        return bool(self._heap)

    def join(self, member: Member) -> None:
        """Add a member; a member that was absent has no credit."""
        self._joined += 1
        heapq.heappush(self._heap, _Turn(self._work, self._joined, member))

    def next(self) -> Member:
        """Return the member whose turn it is."""
        return self._heap[0].member

    def count(self, work: float) -> None:
        """Count work for the member whose turn it is, which delays its next turn."""
        turn = self._heap[0]
        self._work = max(self._work, turn.work)
        turn.work += work
        heapq.heapreplace(self._heap, turn)

    def leave(self, work: float) -> None:
        """Remove the member whose turn it is; members that join later start with its work."""
        turn = heapq.heappop(self._heap)
        self._work = max(self._work, turn.work + work)


@dataclass(slots=True)
class _Request(Generic[Item]):
    name: str
    items: deque[tuple[Item, float]] = field(default_factory=deque)


@dataclass(slots=True)
class _Client(Generic[Item]):
    name: str
    requests: dict[str, _Request[Item]] = field(default_factory=dict)
    turns: _Turns[_Request[Item]] = field(default_factory=_Turns)


class FairQueue(Generic[Item]):
    """Waiting items in a fair order."""

    def __init__(self, is_dropped: Callable[[Item], bool]) -> None:
        """Start empty.

        Args:
            is_dropped: Returns whether an item is no longer needed; such items are skipped.
        """
        self._is_dropped = is_dropped
        self._clients: dict[str, _Client[Item]] = {}
        self._turns = _Turns[_Client[Item]]()

    def __bool__(self) -> bool:
        return bool(self._clients)

    def push(self, item: Item, cost: float, client: str, request: str) -> None:
        """Add an item.

        Args:
            item: The item.
            cost: Its amount of work, in any unit.
            client: Name of its client; all clients get equal shares.
            request: Name of its request; the requests of a client get equal parts of its share.
        """
        owner = self._clients.get(client)
        if owner is None:
            owner = self._clients[client] = _Client(client)
            self._turns.join(owner)
        own = owner.requests.get(request)
        if own is None:
            own = owner.requests[request] = _Request(request)
            owner.turns.join(own)
        own.items.append((item, cost))

    def peek(self) -> Item | None:
        """Return the next item without removing it; None if the queue is empty."""
        while self._turns:
            item, _ = self._turns.next().turns.next().items[0]
            if not self._is_dropped(item):
                return item
            self._take(work=0.0)
        return None

    def pop(self) -> Item | None:
        """Remove and return the next item; None if the queue is empty."""
        item = self.peek()
        if item is not None:
            _, cost = self._turns.next().turns.next().items[0]
            self._take(cost)
        return item

    def _take(self, work: float) -> None:
        """Remove the next item, and count its work for its request and its client."""
        client = self._turns.next()
        request = client.turns.next()
        request.items.popleft()
        if request.items:
            client.turns.count(work)
        else:
            client.turns.leave(work)
            del client.requests[request.name]
        if client.requests:
            self._turns.count(work)
        else:
            self._turns.leave(work)
            del self._clients[client.name]
