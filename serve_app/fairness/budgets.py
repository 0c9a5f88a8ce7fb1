"""A bounded amount of something, such as bytes or requests, that clients share fairly.

Not here: who a client is (`api/edge.py`), and the order in which waiting work is done (`queues.py`).
"""

RESERVE = 1 / 8
"""Part of a budget that clients above their share leave free, so that one that comes later is not refused."""
ROUNDING = 1e-9
"""Sums of fractions that are taken and given back differ by this at most."""


class SharedBudget:
    """What is held of a capacity, by whom.

    Everybody may take while less than `1 - RESERVE` of the capacity is held. Beyond that only clients that hold less than
    their share may: the capacity divided by the number of clients and one. So one client alone can use nearly
    everything, and a client with little is refused last.
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
        """Take an amount for a client if it may; return whether it did."""
        if not self.fits(client, amount):
            return False
        self.add(client, amount)
        return True

    def add(self, client: str, amount: float) -> None:
        """Note an amount that is held already, whether or not there was room for it."""
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
