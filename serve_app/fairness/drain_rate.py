"""How fast a budget is given back, and so when a client that was refused may try again."""

from collections import deque

MAX_EVENTS = 64
"""Number of returns that the rate is computed from."""


class DrainRate:
    """The rate at which something is given back, from its latest returns. Without a clock."""

    def __init__(self) -> None:
        """Start without a known rate."""
        self._events: deque[tuple[float, float]] = deque(maxlen=MAX_EVENTS)

    def note(self, amount: float, now_s: float) -> None:
        """Record that an amount was given back."""
        self._events.append((now_s, amount))

    def seconds_for(self, amount: float, now_s: float) -> float | None:
        """Return the seconds in which an amount will be given back; None while that is unknown.

        Time in which nothing was given back counts, so the result grows while nothing moves.
        """
        if len(self._events) < 2:
            return None
        first_s, first_amount = self._events[0]
        returned = sum(amount for _, amount in self._events) - first_amount
        if returned <= 0:
            return None
        return amount * (now_s - first_s) / returned
