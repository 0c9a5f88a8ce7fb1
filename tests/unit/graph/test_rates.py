"""Counters of a replica, read as rates."""

import pytest

from serve_app.graph.rates import Rates


def test_small_batches_do_not_ask_for_more_encoders() -> None:
    """An encoder that takes 7 ms and 1.44 ms an image: its rate is that of full batches, however
    small they get.
    """
    rates = Rates(0.0)
    for images in (2, 16, 1, 1, 14, 1):
        rates.work(images, 0.007 + 0.00144 * images, full=images >= 8)
    _, full = rates.read(1.0)
    assert full == pytest.approx(30 / (2 * 0.007 + 30 * 0.00144))
    rates.work(1, 0.5, full=False)
    assert rates.read(2.0) == (0.0, full)
    small = Rates(0.0)
    small.work(2, 0.5, full=False)
    assert small.read(1.0)[1] == 4.0


def test_arrivals_are_counted_since_the_last_reading() -> None:
    """Images a second, and nothing known of the work before there was any."""
    rates = Rates(0.0)
    for _ in range(10):
        rates.arrive(1)
    assert rates.read(5.0) == (2.0, None)
    assert rates.read(6.0) == (0.0, None)
