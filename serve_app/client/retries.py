"""When a failed request is sent again, and after how long.

Arithmetic: nothing here waits or sends.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from serve_app.errors import ConfigError

RETRIED_STATUSES = (429, 502, 503)
"""Refused for now: queues are full, or a part is starting or gone, which a gateway says as 502."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How often and how long a call is tried.

    Attributes:
        max_tries: Times that a request is sent at most; 1 for no retries.
        deadline_s: Seconds from the first try after which none is begun or waited for.
        max_wait_s: Most seconds between two tries, whatever the service asks for.
        first_wait_s: Seconds before the second try where the service asks for nothing; doubled each
            time.
    """

    max_tries: int = 4
    deadline_s: float = 120.0
    max_wait_s: float = 30.0
    first_wait_s: float = 0.25

    def __post_init__(self) -> None:
        if self.max_tries < 1:
            raise ConfigError(f"max_tries is {self.max_tries}; a call is tried at least once.")
        if not (self.deadline_s > 0 and self.max_wait_s >= 0):
            raise ConfigError("deadline_s must be above 0, and max_wait_s not below it.")

    def wait_s(
        self, tries: int, told_s: float | None, elapsed_s: float, jitter: float
    ) -> float | None:
        """Return the seconds to wait before the next try, or None if there is none.

        Args:
            tries: How often it was tried, from 1.
            told_s: What the service asked for in seconds, if it did.
            elapsed_s: Seconds since the first try.
            jitter: In [0, 1): spreads clients that failed at the same moment. A wait that was asked
                for becomes longer by at most `first_wait_s`; any other is half to all of what it
                would be.
        """
        if tries >= self.max_tries:
            return None
        if told_s is None:
            wait_s = self.first_wait_s * 2.0 ** min(tries - 1, 30) * (0.5 + jitter / 2)
        else:
            wait_s = told_s + self.first_wait_s * jitter
        wait_s = min(wait_s, self.max_wait_s)
        return wait_s if elapsed_s + wait_s < self.deadline_s else None


def told_wait_s(headers: httpx.Headers) -> float | None:
    """Return the seconds of `Retry-After`, which may be a date, or None if it is not there or
    cannot be read.

    A date is compared with the service's own `Date`, so that clocks need not agree.
    """
    told = headers.get("retry-after", "").strip()
    if told.isascii() and told.isdigit():
        return float(told)
    until = _date(told)
    if until is None:
        return None
    now = _date(headers.get("date", "")) or datetime.now(UTC)
    seconds = (until - now).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
