"""Measures how long calls take, and predicts when a receiver of calls is free.

This module does not use Ray, and takes the time as an argument.
"""

from collections import deque

NEWEST_WEIGHT = 0.2
"""Weight of the latest call in the moving mean of durations."""


class Turns:
    """The calls in progress to several receivers, each of which works on one call at a time.

    Which receiver has which call is not known. This class assumes that each receiver works on a
    call, that a queued call begins when another one ends, and that the oldest call ends first.
    """

    def __init__(self) -> None:
        self._begun_s: deque[float] = deque()
        self._queued = 0
        self.seconds: float | None = None

    def __len__(self) -> int:
        return len(self._begun_s) + self._queued

    def start(self, now_s: float, receivers: int) -> None:
        """Record that a call is sent."""
        if len(self._begun_s) < receivers:
            self._begun_s.append(now_s)
        else:
            self._queued += 1

    def end(self, now_s: float, succeeded: bool) -> None:
        """Record that a call ended; only successful calls count for the mean duration."""
        duration_s = now_s - self._begun_s.popleft()
        if succeeded:
            mean_s = duration_s if self.seconds is None else self.seconds
            self.seconds = mean_s + NEWEST_WEIGHT * (duration_s - mean_s)
        if self._queued:
            self._queued -= 1
            self._begun_s.append(now_s)

    def next_end_s(self) -> float | None:
        """Return when a receiver is expected to be free for another call; None if unknown.

        Calls that are already queued come first.
        """
        if self.seconds is None or self._queued >= len(self._begun_s):
            return None
        return self._begun_s[self._queued] + self.seconds
