"""How long calls take, and when a receiver of calls is expected to be free.

No Ray, and no clock of its own.
"""

from collections import deque

NEWEST_WEIGHT = 0.2
"""Weight of the last call in the moving mean of durations."""


class Turns:
    """The calls under way to some receivers that each work on one call at a time.

    It is assumed that as many calls as there are receivers have begun, that one more begins
    whenever one ends, and that the oldest ends first: which receiver has which call is not known.
    """

    def __init__(self) -> None:
        self._begun_s: deque[float] = deque()
        self._behind = 0
        self.seconds: float | None = None

    def __len__(self) -> int:
        return len(self._begun_s) + self._behind

    def start(self, now_s: float, receivers: int) -> None:
        """Note that a call is sent."""
        if len(self._begun_s) < receivers:
            self._begun_s.append(now_s)
        else:
            self._behind += 1

    def end(self, now_s: float, succeeded: bool) -> None:
        """Note that a call ended; only calls that succeeded count for the mean duration."""
        taken_s = now_s - self._begun_s.popleft()
        if succeeded:
            mean_s = taken_s if self.seconds is None else self.seconds
            self.seconds = mean_s + NEWEST_WEIGHT * (taken_s - mean_s)
        if self._behind:
            self._behind -= 1
            self._begun_s.append(now_s)

    def next_end_s(self) -> float | None:
        """Return when a receiver is expected to be free for one more call; None if unknown.

        Calls that wait already come first.
        """
        if self.seconds is None or self._behind >= len(self._begun_s):
            return None
        return self._begun_s[self._behind] + self.seconds
