"""How many replicas a load asks for, in tables, as properties and over time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.hardware.scaling import (
    DRAIN_S,
    HOLD_S,
    POSTPROCESSOR_PER_SECOND,
    TEXT_CALLS_PER_REPLICA,
    UTILISATION,
    Bounds,
    History,
    Load,
    damp,
    wanted_replicas,
)

IDLE = Load(0.0, 0.0, 0.0, 100.0, 50.0, 0.0)
NAMES = ("ImageEncoder", "Preprocessor", "Postprocessor", "TextEncoder")


def load(**changes: float | None) -> Load:
    values = {
        name: getattr(IDLE, name)
        for name in (
            "arrivals",
            "waiting",
            "undecoded",
            "per_encoder",
            "per_preprocessor",
            "text_calls",
        )
    }
    return Load(**(values | changes))


def wanted(given_load: Load, current: int = 1, least: int = 1, most: int = 50) -> dict[str, int]:
    return wanted_replicas(
        given_load, {name: Bounds(current, current, least, most) for name in NAMES}
    )


@pytest.mark.parametrize(
    ("given_load", "name", "replicas"),
    [
        (IDLE, "ImageEncoder", 1),
        (load(arrivals=UTILISATION * 100), "ImageEncoder", 1),
        (load(arrivals=UTILISATION * 300), "ImageEncoder", 3),
        (load(waiting=DRAIN_S * UTILISATION * 200), "ImageEncoder", 2),
        (load(per_encoder=None), "ImageEncoder", 1),
        (load(per_encoder=None, waiting=5.0), "ImageEncoder", 2),
        (load(arrivals=1e9), "ImageEncoder", 50),
        (load(arrivals=UTILISATION * 100), "Preprocessor", 2),
        (load(arrivals=500.0, per_preprocessor=None), "Preprocessor", 1),
        (load(undecoded=DRAIN_S * UTILISATION * 150), "Preprocessor", 3),
        (load(arrivals=UTILISATION * POSTPROCESSOR_PER_SECOND * 2.5), "Postprocessor", 3),
        (load(text_calls=TEXT_CALLS_PER_REPLICA * 3), "TextEncoder", 3),
    ],
)
def test_table(given_load: Load, name: str, replicas: int) -> None:
    """Arrivals and what waits, over what one replica does, at three quarters of its time."""
    assert wanted(given_load)[name] == replicas


def test_text_may_go_to_zero_and_only_if_so_configured() -> None:
    """An idle TextEncoder ends where its bounds say."""
    assert wanted(IDLE, current=1, least=0)["TextEncoder"] == 0
    assert wanted(IDLE, current=1, least=1)["TextEncoder"] == 1
    assert wanted(load(text_calls=0.1), current=1, least=0)["TextEncoder"] == 1


def test_a_small_difference_changes_nothing() -> None:
    """Within a tenth of what there is, nothing moves; beyond it does."""
    assert wanted(load(arrivals=UTILISATION * 1_050), current=10)["ImageEncoder"] == 10
    assert wanted(load(arrivals=UTILISATION * 950), current=10)["ImageEncoder"] == 10
    assert wanted(load(arrivals=UTILISATION * 1_150), current=10)["ImageEncoder"] == 12
    assert wanted(load(arrivals=UTILISATION * 800), current=10)["ImageEncoder"] == 8


rates = st.floats(0, 1e6)


@given(
    rates,
    rates,
    rates,
    rates,
    st.floats(0.01, 1e4),
    st.integers(0, 60),
    st.integers(0, 5),
    st.integers(5, 60),
)
def test_more_load_never_gives_fewer_replicas_and_bounds_hold(
    arrivals: float,
    more: float,
    waiting: float,
    more_waiting: float,
    rate: float,
    current: int,
    least: int,
    most: int,
) -> None:
    """Monotone in arrivals, in what waits and in text calls, and always within the bounds."""
    small = load(
        arrivals=arrivals,
        waiting=waiting,
        per_encoder=rate,
        per_preprocessor=rate,
        text_calls=arrivals,
    )
    large = load(
        arrivals=arrivals + more,
        waiting=waiting + more_waiting,
        per_encoder=rate,
        per_preprocessor=rate,
        text_calls=arrivals + more,
    )
    fewer = wanted(small, current, least, most)
    greater = wanted(large, current, least, most)
    for name in NAMES:
        assert least <= fewer[name] <= greater[name] <= most


@given(st.lists(st.tuples(st.floats(0.1, 60), st.integers(0, 20)), max_size=60))
def test_damping_is_the_most_of_the_window(steps: list[tuple[float, int]]) -> None:
    """Up at once, down only to what was wanted lately; the shortened history gives what the whole
    one would.
    """
    history: History = ()
    now = 0.0
    wishes = list[tuple[float, int]]()
    for pause, wish in steps:
        now += pause
        wishes.append((now, wish))
        target, history = damp(wish, history, now)
        assert target == max(count for at, count in wishes if at > now - HOLD_S)
        assert len(history) <= 21  # falling numbers only


def test_a_load_that_swings_does_not_swing_the_replicas() -> None:
    """Load that doubles and halves every half minute: the replicas rise once and stay."""
    history: History = ()
    current = 1
    changes = 0
    for second in range(0, 1_200, 2):
        arrivals = 600.0 if second // 30 % 2 else 300.0
        wish = wanted_replicas(
            load(arrivals=arrivals), {"ImageEncoder": Bounds(current, current, 1, 50)}
        )["ImageEncoder"]
        target, history = damp(wish, history, float(second))
        changes += target != current
        current = target
    assert current == 8
    assert changes == 2  # to what 300 and then what 600 a second ask for


def test_without_a_measurement_replicas_follow_those_that_run() -> None:
    """Asked ten times a second, the target stays a little above what runs, and grows from any
    number.
    """
    unknown = load(per_encoder=None, waiting=50.0)
    target = 1
    for _ in range(20):
        target = wanted_replicas(unknown, {"ImageEncoder": Bounds(target, 1, 1, 50)})[
            "ImageEncoder"
        ]
    assert target == 2
    assert wanted_replicas(unknown, {"ImageEncoder": Bounds(20, 20, 1, 50)})["ImageEncoder"] > 20
