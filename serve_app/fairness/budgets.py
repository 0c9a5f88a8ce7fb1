"""A limited resource, such as bytes or requests, that clients share fairly.

Not here: who a client is (`RequestRecord.client`), the order of waiting work (`queues.py`).
"""

RESERVE = 1 / 8
"""Fraction of a budget that clients above their share leave free, so that a new client is not
refused."""
ROUNDING = 1e-9
"""Tolerance for rounding errors in sums of fractions."""


class SharedBudget:
    """A capacity, and the amount that each client holds.

    While less than `1 - RESERVE` of the capacity is held, every client may take more. Above that,
    only a client below its share may take more. The share is the capacity divided by the number of
    clients plus one. A single client can therefore use nearly all of it, and clients that hold
    little are refused last.
    """

    def __init__(self, capacity: float) -> None:
        """Start with nothing held."""
        self.capacity = capacity
        self.held = 0.0
        self._by_client: dict[str, float] = {}

    def fits(self, client: str, amount: float) -> bool:
        """Return whether a client may take an amount now."""
        after = self.held + amount
        if not self.held:
            return after <= self.capacity
        if after <= self.capacity * (1 - RESERVE):
            return True
        own = self._by_client.get(client, 0.0)
        others = len(self._by_client) - (client in self._by_client)
        return after <= self.capacity and own + amount <= self.capacity / (others + 2)

    def take(self, client: str, amount: float) -> bool:
        """Take an amount for a client if it fits; return whether it did."""
        if not self.fits(client, amount):
            return False
        self.add(client, amount)
        return True

    def add(self, client: str, amount: float) -> None:
        """Record an amount that is already held, even if it does not fit."""
        self.held += amount
        self._by_client[client] = self._by_client.get(client, 0.0) + amount

    def give_back(self, client: str, amount: float) -> None:
        """Return an amount that was taken or added."""
        left = self._by_client.get(client, 0.0) - amount
        self.held -= amount
        if left > ROUNDING:
            self._by_client[client] = left
            return
        self._by_client.pop(client, None)
        if not self._by_client:
            self.held = 0.0
