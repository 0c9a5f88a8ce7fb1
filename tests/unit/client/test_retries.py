"""How long is waited before a request is sent again; expected values by hand."""

import httpx
import pytest

from serve_app.client.retries import Retries, parse_retry_after
from serve_app.errors import ConfigError

DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": " 0 "}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT", "Date": DATE}, 30.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:27:00 GMT", "Date": DATE}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:30 -0000", "Date": DATE}, 30.0),
        ({"Retry-After": DATE}, 0.0),  # without the service's own date: long ago by this machine's
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "٣"}, None),
        ({"Retry-After": "1e3"}, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date(
    headers: dict[str, str], expected: float | None
) -> None:
    """A date counts from the service's own; what cannot be read is as if it were not there."""
    assert (
        parse_retry_after(httpx.Headers({name: value.encode() for name, value in headers.items()}))
        == expected
    )


def test_a_date_far_ahead_of_this_machines_clock_is_a_long_wait() -> None:
    """Without the service's own date this machine's clock is compared with."""
    seconds = parse_retry_after(httpx.Headers({"Retry-After": "Fri, 31 Dec 2999 23:59:59 GMT"}))
    assert seconds is not None
    assert seconds > 86_400


@pytest.mark.parametrize(
    ("tries", "retry_after_s", "jitter", "expected"),
    [
        (1, None, 0.0, 0.5),
        (2, None, 0.0, 1.0),
        (3, None, 0.0, 2.0),
        (3, None, 0.5, 3.0),
        (9, None, 0.0, 10.0),  # 128 s would be more than the most
        (1, 4.0, 0.0, 4.0),
        (1, 4.0, 0.5, 4.5),
        (1, 3_600.0, 0.0, 10.0),
        (5_000, None, 0.9, 10.0),
        (10_000, None, 0.0, None),
    ],
)
def test_waits_double_and_are_bounded(
    tries: int, retry_after_s: float | None, jitter: float, expected: float | None
) -> None:
    """From half of `first_wait_s` on, or what the service asks for and never less, and at most
    `max_wait_s`.
    """
    retries = Retries(max_tries=10_000, deadline_s=100.0, max_wait_s=10.0, first_wait_s=1.0)
    assert retries.wait_s(tries, retry_after_s, 0.0, jitter) == expected


def test_no_wait_goes_past_the_deadline() -> None:
    """A wait that would end after it is not begun."""
    retries = Retries(max_tries=10, deadline_s=20.0, max_wait_s=10.0)
    assert retries.wait_s(1, 5.0, 14.0, 0.0) == 5.0
    assert retries.wait_s(1, 5.0, 15.0, 0.0) is None


@pytest.mark.parametrize(
    "wrong",
    [{"max_tries": 0}, {"deadline_s": 0.0}, {"max_wait_s": -1.0}, {"deadline_s": float("nan")}],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    """Before anything is sent."""
    with pytest.raises(ConfigError):
        Retries(**wrong)  # type: ignore[arg-type]
