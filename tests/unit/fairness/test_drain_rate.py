"""When a budget that is full will have room again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.fairness.drain_rate import MAX_EVENTS, DrainRate


def test_nothing_is_known_before_two_returns() -> None:
    rate = DrainRate()
    assert rate.seconds_for(10, 5.0) is None
    rate.note(1, 1.0)
    assert rate.seconds_for(10, 5.0) is None
    rate.note(1, 2.0)
    assert rate.seconds_for(10, 2.0) == 10.0


@given(st.floats(0.01, 100), st.floats(1, 1e9), st.integers(2, 3 * MAX_EVENTS), st.floats(0, 1e12))
def test_a_steady_rate_is_found(pause_s: float, amount: float, count: int, wanted: float) -> None:
    """Equal amounts at equal times; only the newest returns count."""
    rate = DrainRate()
    for i in range(count):
        rate.note(amount, i * pause_s)
    now_s = (count - 1) * pause_s
    assert rate.seconds_for(wanted, now_s) == pytest.approx(wanted / amount * pause_s, rel=1e-6)


def test_the_time_grows_while_nothing_moves() -> None:
    rate = DrainRate()
    rate.note(1, 0.0)
    rate.note(1, 1.0)
    assert rate.seconds_for(4, 1.0) == 4.0
    assert rate.seconds_for(4, 3.0) == 12.0
