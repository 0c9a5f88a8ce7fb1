"""How good tags are on images whose content is known: ranking, precision and recall at thresholds,
calibration.

Not here: fitting anything to them (`fitting.py`), reading what is known (`labelled.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.scoring import sigmoid

BoolArray = npt.NDArray[np.bool_]
Curve = npt.NDArray[np.float64]
CALIBRATION_BINS = 15
"""Of equal width. Source: Guo et al. 2017, On Calibration of Modern Neural Networks."""


def average_precision(scores: npt.NDArray[np.floating], truth: BoolArray) -> float:
    """Return the precision at every cut of the ranking, weighted by the recall that the cut adds;
    equal scores are cut together.

    Args:
        scores: (B,) any monotone score.
        truth: (B,) which items are true; at least one is.
    """
    precision, recall, _ = precision_recall_curve(scores, truth)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def mean_average_precision(scores: npt.NDArray[np.floating], truth: BoolArray) -> float:
    """Return the mean of every label's average precision; labels that are never true are left out.

    Args:
        scores: (B, T) any monotone score.
        truth: (B, T) which label is true of which image.
    """
    present = np.flatnonzero(truth.any(axis=0))
    return (
        float(np.mean([average_precision(scores[:, t], truth[:, t]) for t in present]))
        if len(present)
        else 0.0
    )


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Pairs of image and tag whose confidence lies in one part of [0, 1]: how many, their mean
    confidence, how many are true.
    """

    count: int
    confidence: float
    frequency: float


def reliability(confidences: FloatArray, truth: BoolArray) -> list[ReliabilityBin]:
    """Return the bins of a reliability diagram that hold something, over all pairs of image and
    tag.
    """
    at = np.minimum((confidences * CALIBRATION_BINS).astype(np.intp), CALIBRATION_BINS - 1).ravel()
    counts = np.bincount(at, minlength=CALIBRATION_BINS)
    confidence = np.bincount(at, confidences.ravel().astype(np.float64), CALIBRATION_BINS)
    true = np.bincount(at, truth.ravel(), CALIBRATION_BINS)
    return [
        ReliabilityBin(int(n), float(c / n), float(t / n))
        for n, c, t in zip(counts, confidence, true, strict=True)
        if n
    ]


def expected_calibration_error(confidences: FloatArray, truth: BoolArray) -> float:
    """Return the mean difference of confidence and frequency over all pairs, by the bins of
    `reliability`.
    """
    return sum(
        b.count * abs(b.confidence - b.frequency) for b in reliability(confidences, truth)
    ) / max(1, confidences.size)


@dataclass(frozen=True, slots=True)
class Rates:
    """Precision, recall and their harmonic mean; 0 where there is nothing to divide by."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """The harmonic mean."""
        return (
            2 * self.precision * self.recall / (self.precision + self.recall)
            if self.precision + self.recall
            else 0.0
        )


@dataclass(frozen=True, slots=True)
class TagMeasure:
    """One tag: on how many images it is true, on how many it is given, and how well both agree."""

    label: str
    true: int
    given: int
    rates: Rates
    average_precision: float


@dataclass(frozen=True, slots=True)
class Measures:
    """What was measured of one score at its thresholds.

    Attributes:
        images: How many.
        mean_average_precision: Of the tags that occur.
        micro: Rates over all pairs of image and tag.
        macro_f1: Mean of the occurring tags' F1.
        calibration_error: Expected calibration error over all pairs.
        tags_per_image: Mean number of tags given.
        tags: Each tag's own.
    """

    images: int
    mean_average_precision: float
    micro: Rates
    macro_f1: float
    calibration_error: float
    tags_per_image: float
    tags: tuple[TagMeasure, ...]


def measure(
    scores: FloatArray, least: FloatArray, truth: BoolArray, labels: Sequence[str]
) -> Measures:
    """Measure scores against what is true.

    Args:
        scores: (B, T) logits of a score.
        least: (T,) the thresholds, as logits.
        truth: (B, T) which tag is true of which image.
        labels: T labels.
    """
    return measure_given(scores, scores >= least, truth, labels)


def measure_given(
    scores: FloatArray, given: BoolArray, truth: BoolArray, labels: Sequence[str]
) -> Measures:
    """Measure scores, and the tags that were chosen by them, against what is true.

    Args:
        scores: (B, T) logits of a score, for the ranking and the calibration error.
        given: (B, T) which tags an image was given, for everything else.
        truth: (B, T) which tag is true of which image.
        labels: T labels.
    """
    tags = tuple(
        _measure_tag(label, scores[:, t], given[:, t], truth[:, t])
        for t, label in enumerate(labels)
    )
    occurring = [tag for tag in tags if tag.true]
    return Measures(
        images=len(scores),
        mean_average_precision=float(np.mean([tag.average_precision for tag in occurring]))
        if occurring
        else 0.0,
        micro=_rates(given, truth),
        macro_f1=float(np.mean([tag.rates.f1 for tag in occurring])) if occurring else 0.0,
        calibration_error=expected_calibration_error(sigmoid(scores), truth),
        tags_per_image=float(given.sum() / max(1, len(scores))),
        tags=tags,
    )


def precision_recall_curve(
    scores: npt.NDArray[np.floating], truth: BoolArray
) -> tuple[Curve, Curve, npt.NDArray[np.floating]]:
    """Return precision, recall and the score at every cut of a ranking, the strictest first; equal
    scores are cut together.

    Args:
        scores: (n,) any monotone score.
        truth: (n,) which of them are true.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    hits = np.cumsum(truth[order])
    last = np.flatnonzero(np.append(np.diff(ranked) != 0, True))
    precision = hits[last] / (last + 1)
    recall = hits[last] / max(1, int(truth.sum()))
    return precision, recall, ranked[last]


def _measure_tag(label: str, scores: FloatArray, given: BoolArray, truth: BoolArray) -> TagMeasure:
    precision = average_precision(scores, truth) if truth.any() else 0.0
    return TagMeasure(label, int(truth.sum()), int(given.sum()), _rates(given, truth), precision)


def _rates(given: BoolArray, truth: BoolArray) -> Rates:
    right = int((given & truth).sum())
    return Rates(right / max(1, int(given.sum())), right / max(1, int(truth.sum())))
