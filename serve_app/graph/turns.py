"""How long calls take, and so when a receiver of calls will next be free.

No Ray, no clock of its own.
"""

from collections import deque

NEWEST_WEIGHT = 0.2
"""Of the last call in the moving mean of durations."""


class Turns:
    """The calls under way to some receivers that each work on one at a time.

    As many calls as there are receivers are taken to have begun; one more begins whenever one ends.
    Which receiver has which call is not known, so the oldest is taken to end first.
    """

    def __init__(self) -> None:
        self._begun_s: deque[float] = deque()
        self._behind = 0
        self.seconds: float | None = None

    def __len__(self) -> int:
        return len(self._begun_s) + self._behind

    def start(self, now_s: float, receivers: int) -> None:
        """Note that a call leaves."""
        if len(self._begun_s) < receivers:
            self._begun_s.append(now_s)
        else:
            self._behind += 1

    def end(self, now_s: float, succeeded: bool) -> None:
        """Note that a call came back; the time of a failed one says nothing of the next."""
        taken_s = now_s - self._begun_s.popleft()
        if succeeded:
            self.seconds = (
                taken_s
                if self.seconds is None
                else self.seconds + NEWEST_WEIGHT * (taken_s - self.seconds)
            )
        if self._behind:
            self._behind -= 1
            self._begun_s.append(now_s)

    def next_end_s(self) -> float | None:
        """Return when a receiver is expected to be free for one more call than wait already; None
        if that is not known.
        """
        if self.seconds is None or self._behind >= len(self._begun_s):
            return None
        return self._begun_s[self._behind] + self.seconds
