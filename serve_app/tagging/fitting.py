"""Fitting a calibration: Platt's lines on labelled images, background offsets on unlabelled ones.

Everything is fitted on logits, because probabilities near 0 and 1 are too coarse. Fits are
deterministic.

Not here: applying a fit (`scores.py`), measuring it (`evaluation.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve_app.errors import ConfigError
from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.calibration import Calibration, Fit
from serve_app.tagging.evaluation import BoolArray, precision_recall_curve
from serve_app.tagging.logistic_lines import Matrix, fit_line, information, sigmoid

MIN_EXAMPLES = 10
"""Images with a tag, and images without it, that its own line needs."""
MIN_EXAMPLES_FOR_THRESHOLD = 50
"""Images that its own threshold needs: the best cut of few images is found by chance."""
PRIOR_IMAGES = 500
"""Weight of the pooled line in a tag's line, in average images.
Measured on the demo's scenes (2026-11-23, 600 images, 62 tags, held-out F1): 0.931 from 300 to 600,
0.930 with 3,000, 0.923 without a prior."""
RELATED_SHARE = 0.1
MAX_RELATED = 20
"""Fraction and number of the tags that are related to an image: those that stand out most in it,
each relative to its own spread."""
MIN_UNRELATED = 20
DEFAULT_PERCENTILE = 95.0
DEFAULT_TAGS_PER_IMAGE = 5.0


@dataclass(frozen=True, slots=True)
class Goal:
    """What thresholds are chosen for: the best F1, or the best recall at a minimum precision."""

    precision: float | None = None

    def check(self) -> None:
        """Raise `ConfigError` for a precision that is out of bounds."""
        if self.precision is not None and not 0 < self.precision <= 1:
            raise ConfigError(
                f"the wanted precision is {self.precision:g}; it must lie between 0 and 1."
            )


@dataclass(frozen=True, slots=True)
class FittedTo:
    """What a calibration is fitted for.

    Attributes:
        checkpoint: Fingerprint of the checkpoint.
        prompt_templates: Templates of the labels.
        labels: T labels.
        bias: (T,) what the vocabulary adds to calibrated logits, which thresholds include; None for
            nothing.
    """

    checkpoint: str
    prompt_templates: tuple[str, ...]
    labels: Sequence[str]
    bias: FloatArray | None = None

    def biases(self) -> FloatArray:
        """Return (T,) biases."""
        return np.zeros(len(self.labels), np.float32) if self.bias is None else self.bias


def fit_labelled(
    logits: FloatArray, truth: BoolArray, known: BoolArray, of: FittedTo, goal: Goal = Goal()
) -> Calibration:
    """Fit a line for each tag with examples, one line for all others, and thresholds.

    Args:
        logits: (B, T) logits of the model.
        truth: (B, T) which tag is true of which image.
        known: (T,) which tags were looked at; the others have the pooled line.
        of: What the calibration is for.
        goal: What thresholds are chosen for.

    Raises:
        ConfigError: There are too few examples, the scores say nothing of the labels, or the
            precision is never reached.
    """
    goal.check()
    z = logits[:, known].astype(np.float64)
    y = truth[:, known]
    pooled = _pooled_line(z, y)
    prior = information(z.ravel(), pooled) * (PRIOR_IMAGES / z.size)
    lines = [_line_of(z[:, t], y[:, t], pooled, prior) for t in range(z.shape[1])]
    calibrated = np.stack(
        [scale * z[:, t] + offset for t, (scale, offset) in enumerate(lines)], axis=1
    ) + of.biases()[known].astype(np.float64)
    threshold = best_threshold(calibrated.ravel(), y.ravel(), goal)
    if threshold is None:
        raise ConfigError(
            f"a precision of {goal.precision:g} is not reached at any threshold; ask for less."
        )

    labels = [of.labels[number] for number in np.flatnonzero(known).tolist()]
    return Calibration(
        method="platt",
        checkpoint=of.checkpoint,
        prompt_templates=of.prompt_templates,
        images=len(logits),
        threshold=_probability(threshold),
        pooled=Fit(scale=float(pooled[0]), offset=float(pooled[1])),
        tags={
            label: _fit_of(lines[t], calibrated[:, t], y[:, t], goal)
            for t, label in enumerate(labels)
        },
    )


def fit_background(
    logits: FloatArray,
    of: FittedTo,
    percentile: float = DEFAULT_PERCENTILE,
    tags_per_image: float = DEFAULT_TAGS_PER_IMAGE,
) -> Calibration:
    """Fit an offset for each tag on unlabelled images, and a threshold for a mean number of tags.

    A tag's offset moves its high-percentile logit over unrelated images to that of the median tag.
    Labels that fit everything ("photo", "art") get lower scores, and those that fit little get
    higher ones.

    Args:
        logits: (B, T) logits of the model.
        of: What the calibration is for.
        percentile: Percentile of the logits of unrelated images.
        tags_per_image: Requested mean number of tags.

    Raises:
        ConfigError: There are too few images, or fewer tags than are wanted.
    """
    images, tags = logits.shape
    _check_background(images, tags, percentile, tags_per_image)
    unrelated = ~_related(logits)
    high = np.array(
        [np.percentile(_background(logits[:, t], unrelated[:, t]), percentile) for t in range(tags)]
    )
    offsets = np.median(high) - high
    shifted = np.sort((logits + offsets + of.biases()).ravel())[::-1]
    wanted = min(len(shifted), max(1, round(tags_per_image * images)))
    return Calibration(
        method="background",
        checkpoint=of.checkpoint,
        prompt_templates=of.prompt_templates,
        images=images,
        threshold=_probability(float(shifted[wanted - 1])),
        tags={
            label: Fit(offset=float(offset))
            for label, offset in zip(of.labels, offsets, strict=True)
        },
    )


def _check_background(images: int, tags: int, percentile: float, tags_per_image: float) -> None:
    if images < MIN_UNRELATED:
        raise ConfigError(
            f"there are {images} images; at least {MIN_UNRELATED} are needed, and some hundreds "
            "are better."
        )
    if not 0 <= percentile <= 100:
        raise ConfigError(f"the percentile is {percentile:g}; it must lie between 0 and 100.")
    if not 0 < tags_per_image <= tags:
        raise ConfigError(
            f"{tags_per_image:g} tags an image are wanted, and the vocabulary has {tags}."
        )


def best_threshold(scores: Matrix, truth: BoolArray, goal: Goal) -> float | None:
    """Return the lowest score of tags that are given; None if no score reaches the precision.

    It is midway between the last score that is given and the first that is not.
    """
    precision, recall, cuts = precision_recall_curve(scores, truth)
    if goal.precision is None:
        cut = int(np.argmax(precision * recall / np.maximum(precision + recall, 1e-12)))
    else:
        reached = np.flatnonzero(precision >= goal.precision)
        if not len(reached):
            return None
        cut = int(reached[-1])
    score = float(cuts[cut])
    below = float(cuts[cut + 1]) if cut + 1 < len(cuts) else score - 1.0
    return (score + below) / 2


def _fit_of(line: Matrix, calibrated: Matrix, y: BoolArray, goal: Goal) -> Fit:
    """Return a tag's line, and its threshold if it has enough examples."""
    threshold = None
    if _num_examples(y) >= MIN_EXAMPLES_FOR_THRESHOLD:
        threshold = best_threshold(calibrated, y, goal)
    return Fit(
        scale=float(line[0]),
        offset=float(line[1]),
        threshold=None if threshold is None else _probability(threshold),
    )


def _num_examples(y: BoolArray) -> int:
    """Return the number of images with a tag, or without it, whichever is smaller."""
    return min(int(y.sum()), int((~y).sum()))


def _pooled_line(z: Matrix, y: BoolArray) -> Matrix:
    """Return the line of all tags together."""
    if _num_examples(y) < MIN_EXAMPLES:
        raise ConfigError(
            f"there are fewer than {MIN_EXAMPLES} images with a label, or without; label some more."
        )
    pooled = fit_line(z.ravel(), y.ravel(), np.array([1.0, 0.0]), np.zeros((2, 2)))
    if pooled[0] <= 0:
        raise ConfigError(
            "scores are no higher for images with a label than without; is this the right "
            "checkpoint and labels file?"
        )
    return pooled


def _line_of(z: Matrix, y: BoolArray, pooled: Matrix, prior: Matrix) -> Matrix:
    if _num_examples(y) < MIN_EXAMPLES:
        return pooled
    line = fit_line(z, y, pooled, prior)
    return line if line[0] > 0 else pooled


def _related(logits: FloatArray) -> BoolArray:
    """Return (B, T) which tags are likely in an image, or stand out most in it.

    Standing out alone would miss a tag that every third image shows, because its spread is wide.
    """
    middle = np.median(logits, axis=0)
    spread = np.median(np.abs(logits - middle), axis=0) + 1e-6
    standing_out = (logits - middle) / spread
    count = max(1, min(MAX_RELATED, math.ceil(RELATED_SHARE * logits.shape[1])))
    min_standing = np.partition(standing_out, -count, axis=1)[:, -count, None]
    return np.asarray((standing_out >= min_standing) | (logits > 0))


def _background(logits: FloatArray, unrelated: BoolArray) -> FloatArray:
    return logits[unrelated] if unrelated.sum() >= MIN_UNRELATED else logits


def _probability(logit: float) -> float:
    return float(sigmoid(np.array(logit)))
