"""Calibration files, and the fits: against known truths, optimality by a grid, and by-hand
counts.
"""

from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import ConfigError
from serve_app.tagging.calibration import Calibration, Fit, read_calibration, write_calibration
from serve_app.tagging.evaluation import expected_calibration_error
from serve_app.tagging.fitting import (
    MIN_EXAMPLES,
    FittedTo,
    Goal,
    best_threshold,
    fit_background,
    fit_labelled,
)
from serve_app.tagging.logistic_lines import fit_line
from serve_app.tagging.registered import read_registered

TEMPLATES = ("{label}",)
LABELS = tuple("abcdef")
OF = FittedTo("0123456789abcdef", TEMPLATES, LABELS)
GOOD = Calibration(
    method="platt", checkpoint=OF.checkpoint, prompt_templates=TEMPLATES, images=9,
    threshold=0.4, pooled=Fit(scale=0.5, offset=-1.0),
    tags={
        "a": Fit(scale=2.0, offset=0.25, threshold=0.3), "no": Fit(offset=1.0), "a: b # c": Fit(),
    },
)  # fmt: skip


def drawn(
    seed: int, images: int, scale: np.ndarray, offset: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (B, 6) and what is true, where truth follows the lines exactly."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-2, 3, (images, len(scale))).astype(np.float32)
    return logits, rng.random(logits.shape) < 1 / (1 + np.exp(-(scale * logits + offset)))


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Labels that YAML would read as something else come back; the same calibration gives the same
    bytes.
    """
    write_calibration(GOOD, tmp_path / "a.yaml")
    assert read_calibration(tmp_path / "a.yaml") == GOOD
    write_calibration(GOOD, tmp_path / "b.yaml")
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()
    write_calibration(GOOD.model_copy(update={"tags": {}}), tmp_path / "c.yaml")
    assert read_calibration(tmp_path / "c.yaml").tags == {}


def test_small_numbers_and_long_labels_come_back(tmp_path: Path) -> None:
    """A threshold of 4e-7 is not 0, which would give every tag; a label of 256 characters stays one
    key.
    """
    tiny = Calibration(
        method="platt", checkpoint="x", prompt_templates=TEMPLATES, images=1,
        threshold=3.9e-7, pooled=Fit(scale=2e-6, offset=-1e-7),
        tags={"long label " * 23: Fit(threshold=1e-9), "é'\"\n": Fit()},
    )  # fmt: skip
    write_calibration(tiny, tmp_path / "c.yaml")
    assert read_calibration(tmp_path / "c.yaml") == tiny


def test_a_precision_that_is_never_reached_is_refused() -> None:
    """And one that is no precision."""
    logits, truth = drawn(10, 400, np.full(6, 0.05), np.zeros(6))
    for precision in (0.999, 2.0, 0.0):
        with pytest.raises(ConfigError, match="precision"):
            fit_labelled(logits, truth, np.ones(6, bool), OF, Goal(precision))


def test_a_bias_is_allowed_for_in_thresholds() -> None:
    """The wanted number of tags is given with the vocabulary's biases added."""
    logits, _ = drawn(11, 300, np.ones(6), np.zeros(6))
    bias = np.array([3, -3, 0, 0, 1, 0], np.float32)
    fitted = fit_background(logits, FittedTo("x", TEMPLATES, LABELS, bias), tags_per_image=2)
    shifted = logits + np.array([fitted.tags[label].offset for label in LABELS]) + bias
    assert (1 / (1 + np.exp(-shifted)) >= fitted.threshold).sum() / 300 == pytest.approx(
        2, abs=0.02
    )


BAD = [
    (
        "threshold: 0.4",
        "threshold: 4",
        "c.yaml:9: threshold: must be less than or equal to 1",
    ),
    ("threshold: 0.4", "treshold: 0.4", "c.yaml:9: treshold: unknown key; did you mean threshold?"),
    ("scale: 2.0", "scale: -2.0", "c.yaml:14: tags.a.scale: must be greater than 0"),
    ("offset: 0.25", "offset: .inf", "c.yaml:14: .inf is not a finite number"),
    ("images: 9\n", "", "images is missing"),
    ("method: platt", "method: magic", "c.yaml:4: method"),
    ("tags:", "tags: [", "not YAML"),
]


@pytest.mark.parametrize(("old", "new", "said"), BAD, ids=[b[1][:20] for b in BAD])
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    """The line and the reason."""
    write_calibration(GOOD, tmp_path / "c.yaml")
    text = (tmp_path / "c.yaml").read_text()
    assert old in text
    (tmp_path / "c.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        read_calibration(tmp_path / "c.yaml")
    assert said in str(caught.value), caught.value


def test_a_calibration_for_something_else_is_refused(tmp_path: Path) -> None:
    """Other templates, other labels, another checkpoint: its numbers would mean nothing."""
    write_calibration(GOOD, tmp_path / "c.yaml")
    block = {"labels": ["a"], "calibration": "c.yaml"}
    assert read_registered(block, tmp_path, "x", TEMPLATES).calibration == GOOD
    with pytest.raises(ConfigError, match="prompt_templates"):
        read_registered(block, tmp_path, "x", ("a {label}",))
    with pytest.raises(ConfigError, match="none of its tags"):
        read_registered(block | {"labels": ["z"]}, tmp_path, "x", TEMPLATES)
    with pytest.raises(ConfigError, match="fitted for the checkpoint"):
        GOOD.check_checkpoint("another", "default")


def test_a_line_is_where_the_likelihood_is_greatest() -> None:
    """No point of a fine grid around the fit has a smaller loss, with a prior and without."""
    z, y = drawn(0, 400, np.array([0.7]), np.array([-0.4]))
    z = z[:, 0].astype(np.float64)
    y = y[:, 0]
    for prior in (np.zeros((2, 2)), np.array([[30.0, 4.0], [4.0, 9.0]])):
        start = np.array([1.0, 0.0])

        def loss(line: np.ndarray, prior: np.ndarray = prior, start: np.ndarray = start) -> float:
            u = line[0] * z + line[1]
            return float(
                (np.logaddexp(0, u) - y * u).sum() + 0.5 * (line - start) @ prior @ (line - start)
            )

        line = fit_line(z, y, start, prior)
        assert all(
            loss(line) <= loss(line + step)
            for step in np.random.default_rng(1).normal(0, 0.02, (300, 2))
        )


def test_a_fit_finds_the_lines_that_the_truth_was_drawn_with() -> None:
    """Six tags of 20,000 images: scale to 5 %, offset to 0.1, although the prior draws them
    together.
    """
    scale = np.array([0.5, 0.8, 1.0, 1.2, 0.6, 0.9])
    offset = np.array([0.5, -0.5, 0.0, 1.0, -1.0, 0.2])
    logits, truth = drawn(2, 20_000, scale, offset)
    fitted = fit_labelled(logits, truth, np.ones(6, bool), OF)
    np.testing.assert_allclose([fitted.tags[label].scale for label in LABELS], scale, rtol=0.05)
    np.testing.assert_allclose([fitted.tags[label].offset for label in LABELS], offset, atol=0.1)


def test_a_fit_makes_confidences_true_on_images_it_has_not_seen() -> None:
    """Expected calibration error of fresh images falls to a third and less."""
    scale = np.full(6, 0.4)
    offset = np.array([2.0, -2.0, 1.0, -1.0, 0.0, 0.5])
    fitted = fit_labelled(*drawn(3, 600, scale, offset), np.ones(6, bool), OF)
    logits, truth = drawn(4, 4_000, scale, offset)
    lines = [fitted.tags[label] for label in LABELS]
    after = 1 / (
        1
        + np.exp(
            -np.stack([f.scale * logits[:, t] + f.offset for t, f in enumerate(lines)], axis=1)
        )
    )
    before = 1 / (1 + np.exp(-logits))
    assert (
        expected_calibration_error(after.astype(np.float32), truth)
        < expected_calibration_error(before, truth) / 3
    )


def test_tags_that_are_told_apart_perfectly_keep_a_finite_line() -> None:
    """Without a prior the slope would grow without end."""
    logits = (
        np.where(np.arange(200)[:, None] % 2 == 0, 5.0, -5.0).astype(np.float32)
        + np.linspace(-1, 1, 200)[:, None]
    )
    noisy, truth = drawn(5, 200, np.full(5, 0.8), np.zeros(5))
    both = np.hstack([logits, noisy]).astype(np.float32)
    fitted = fit_labelled(both, np.hstack([logits > 0, truth]), np.ones(6, bool), OF)
    assert 0.5 < fitted.tags["a"].scale < 3


def test_rare_and_unseen_tags_have_the_pooled_line() -> None:
    """Fewer than ten examples are no ground for a line; what was not looked at is not written at
    all.
    """
    logits, truth = drawn(6, 300, np.ones(6), np.zeros(6))
    truth[:, 0] = False
    truth[: MIN_EXAMPLES - 1, 0] = True
    known = np.array([True] * 5 + [False])
    fitted = fit_labelled(logits, truth, known, OF)
    assert (fitted.tags["a"].scale, fitted.tags["a"].offset) == (
        fitted.pooled.scale,
        fitted.pooled.offset,
    )
    assert set(fitted.tags) == set(LABELS[:5])
    assert fitted.tags["a"].threshold is None


def test_fits_are_refused_where_there_is_nothing_to_fit() -> None:
    """Too few examples; scores that run the wrong way; too few images; more tags wanted than there
    are.
    """
    logits, truth = drawn(7, 300, np.ones(6), np.zeros(6))
    with pytest.raises(ConfigError, match="fewer than 10"):
        fit_labelled(logits, np.zeros_like(truth), np.ones(6, bool), OF)
    with pytest.raises(ConfigError, match="right checkpoint"):
        fit_labelled(-logits, truth, np.ones(6, bool), OF)
    with pytest.raises(ConfigError, match="at least 20"):
        fit_background(logits[:5], OF)
    with pytest.raises(ConfigError, match="has 6"):
        fit_background(logits, OF, tags_per_image=7)


def test_thresholds_are_those_of_the_best_f1_or_the_wanted_precision() -> None:
    """Eight scores by hand: F1 is best after the fourth, precision 1 holds up to the second; ties
    are never cut apart.
    """
    scores = np.array([8.0, 7, 6, 5, 4, 3, 2, 1])
    truth = np.array([1, 1, 0, 1, 0, 0, 0, 0], bool)
    assert best_threshold(scores, truth, Goal()) == 4.5
    assert best_threshold(scores, truth, Goal(precision=1.0)) == 6.5
    assert best_threshold(scores, ~truth, Goal(precision=0.99)) is None  # never reached
    tied = np.array([2.0, 2.0, 1.0])
    assert best_threshold(tied, np.array([True, False, False]), Goal()) == 1.5


def test_background_brings_labels_that_fit_everything_down() -> None:
    """One tag is 4 logits too high everywhere: it comes down by about that, and the wanted number
    of tags is given.
    """
    rng = np.random.default_rng(8)
    logits = rng.normal(-8, 1, (400, 6)).astype(np.float32)
    logits[:, 2] += 4
    fitted = fit_background(logits, OF, tags_per_image=1.5)
    assert fitted.tags["c"].offset == pytest.approx(-4, abs=0.5)
    assert max(abs(fitted.tags[label].offset) for label in "abdef") < 0.5
    shifted = logits + np.array([fitted.tags[label].offset for label in LABELS])
    assert (1 / (1 + np.exp(-shifted)) >= fitted.threshold).sum() / 400 == pytest.approx(
        1.5, abs=0.01
    )


def test_background_does_not_count_images_that_show_the_tag() -> None:
    """A tag that a third of the images show is not pushed down for it."""
    rng = np.random.default_rng(9)
    logits = rng.normal(-8, 1, (600, 6)).astype(np.float32)
    logits[:200, 0] = rng.normal(4, 1, 200)
    assert abs(fit_background(logits, OF).tags["a"].offset) < 0.7
