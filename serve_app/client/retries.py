"""Decides whether a failed request is sent again, and after how many seconds.

This module only computes; `exchange.py` uses it, and the clients wait and send.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from serve_app.errors import ConfigError

RETRIED_STATUSES = (429, 502, 503)
"""Statuses of temporary failures: the queues are full, or a part of the service is starting or was
lost, which a gateway reports as 502."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How often and how long a call is tried.

    Attributes:
        max_tries: Maximum number of times that a request is sent; 1 disables retries.
        deadline_s: Seconds after the first try until the client gives up.
        max_wait_s: Maximum seconds between two tries, even if the service asks for more.
        first_wait_s: Seconds before the second try if the service sends no `Retry-After`; doubled
            for each further try.
    """

    max_tries: int = 4
    deadline_s: float = 120.0
    max_wait_s: float = 30.0
    first_wait_s: float = 0.25

    def __post_init__(self) -> None:
        if self.max_tries < 1:
            raise ConfigError(f"max_tries is {self.max_tries}; it must be at least 1.")
        if not (self.deadline_s > 0 and self.max_wait_s >= 0):
            raise ConfigError(
                "deadline_s must be greater than 0, and max_wait_s must be 0 or greater."
            )

    def wait_s(
        self, tries: int, retry_after_s: float | None, elapsed_s: float, jitter: float
    ) -> float | None:
        """Return the seconds to wait before the next try, or None if there is none.

        Args:
            tries: Number of tries so far, at least 1.
            retry_after_s: Seconds of the service's `Retry-After`, if it sent one.
            elapsed_s: Seconds since the first try.
            jitter: A number in [0, 1) that spreads clients which failed at the same moment. It adds
                up to `first_wait_s` to `retry_after_s`, and shortens any other wait by up to half.
        """
        if tries >= self.max_tries:
            return None
        if retry_after_s is None:
            # 2**30 is far beyond any `max_wait_s`, and a larger exponent would overflow
            wait_s = self.first_wait_s * 2.0 ** min(tries - 1, 30) * (0.5 + jitter / 2)
        else:
            wait_s = retry_after_s + self.first_wait_s * jitter
        wait_s = min(wait_s, self.max_wait_s)
        return wait_s if elapsed_s + wait_s < self.deadline_s else None


def parse_retry_after(headers: httpx.Headers) -> float | None:
    """Return the seconds of `Retry-After`, or None if the header is missing or not valid.

    If the header is a date, it is compared with the response's own `Date`, because the clocks of
    client and service may differ.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    retry_at = _parse_date(value)
    if retry_at is None:
        return None
    now = _parse_date(headers.get("date", "")) or datetime.now(UTC)
    seconds = (retry_at - now).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _parse_date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
