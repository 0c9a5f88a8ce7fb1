"""When a receiver of calls is expected to be free."""

import pytest

from serve_app.graph.call_times import NEWEST_WEIGHT, Turns


def test_nothing_is_expected_before_a_call_came_back() -> None:
    """Without a duration there is no expectation, and none without a call under way."""
    turns = Turns()
    turns.start(1.0, receivers=1)
    assert turns.next_end_s() is None
    turns.end(3.0, succeeded=True)
    assert turns.seconds == 2.0
    assert turns.next_end_s() is None


def test_a_call_behind_another_begins_when_that_ends() -> None:
    """Two calls to one receiver, sent together, of 2 s each: the second is expected at 4 s and
    counted as 2 s long.
    """
    turns = Turns()
    turns.start(0.0, receivers=1)
    turns.start(0.0, receivers=1)
    assert len(turns) == 2
    turns.end(2.0, succeeded=True)
    assert turns.next_end_s() == 4.0
    turns.end(4.0, succeeded=True)
    assert turns.seconds == pytest.approx(2.0)
    assert len(turns) == 0


def test_receivers_work_side_by_side() -> None:
    """With two receivers both calls begin at once; the first to end is the one that began first."""
    turns = Turns()
    for now in (0.0, 1.0):
        turns.start(now, receivers=2)
    turns.end(3.0, succeeded=True)
    assert turns.next_end_s() == 4.0


def test_a_failed_call_does_not_change_the_expectation_and_a_slow_one_changes_it_a_little() -> None:
    """A moving mean of the calls that succeeded."""
    turns = Turns()
    for end, succeeded in ((1.0, True), (60.0, False), (2.0, True)):
        turns.start(0.0, receivers=1)
        turns.end(end, succeeded)
    assert turns.seconds == pytest.approx(1.0 + NEWEST_WEIGHT)
