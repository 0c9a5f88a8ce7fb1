"""Measures of tags on labelled images: ranking, precision and recall, calibration.

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
    """Return the precision at every cut of the ranking, weighted by the recall that the cut adds.

    Equal scores are cut together.

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
    return _mean([average_precision(scores[:, t], truth[:, t]) for t in present])


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """The pairs of image and tag whose confidence is in one part of [0, 1].

    Attributes:
        count: Number of pairs.
        confidence: Their mean confidence.
        frequency: Fraction of the pairs that are true.
    """

    count: int
    confidence: float
    frequency: float


def reliability(confidences: FloatArray, truth: BoolArray) -> list[ReliabilityBin]:
    """Return the bins of a reliability diagram that are not empty, over all pairs."""
    last = CALIBRATION_BINS - 1
    bins = np.minimum((confidences * CALIBRATION_BINS).astype(np.intp), last).ravel()
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    confidence = np.bincount(bins, confidences.ravel().astype(np.float64), CALIBRATION_BINS)
    true = np.bincount(bins, truth.ravel(), CALIBRATION_BINS)
    return [
        ReliabilityBin(int(n), float(c / n), float(t / n))
        for n, c, t in zip(counts, confidence, true, strict=True)
        if n
    ]


def expected_calibration_error(confidences: FloatArray, truth: BoolArray) -> float:
    """Return the mean difference of confidence and frequency, by the bins of `reliability`."""
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
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


@dataclass(frozen=True, slots=True)
class TagMeasure:
    """One tag: the number of images it is true of and given to, and how well these agree."""

    label: str
    true: int
    given: int
    rates: Rates
    average_precision: float


@dataclass(frozen=True, slots=True)
class Measures:
    """What was measured of one score at its thresholds.

    Attributes:
        images: Number of images.
        mean_average_precision: Mean over the tags that occur.
        micro: Rates over all pairs of image and tag.
        macro_f1: Mean of the occurring tags' F1.
        calibration_error: Expected calibration error over all pairs.
        tags_per_image: Mean number of tags of an image.
        tags: Measures of each tag.
    """

    images: int
    mean_average_precision: float
    micro: Rates
    macro_f1: float
    calibration_error: float
    tags_per_image: float
    tags: tuple[TagMeasure, ...]


def measure(
    scores: FloatArray, thresholds: FloatArray, truth: BoolArray, labels: Sequence[str]
) -> Measures:
    """Measure scores against what is true.

    Args:
        scores: (B, T) logits of a score.
        thresholds: (T,) thresholds, as logits.
        truth: (B, T) which tag is true of which image.
        labels: T labels.
    """
    return measure_given(scores, scores >= thresholds, truth, labels)


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
        mean_average_precision=_mean([tag.average_precision for tag in occurring]),
        micro=_rates(given, truth),
        macro_f1=_mean([tag.rates.f1 for tag in occurring]),
        calibration_error=expected_calibration_error(sigmoid(scores), truth),
        tags_per_image=float(given.sum() / max(1, len(scores))),
        tags=tags,
    )


def precision_recall_curve(
    scores: npt.NDArray[np.floating], truth: BoolArray
) -> tuple[Curve, Curve, npt.NDArray[np.floating]]:
    """Return precision, recall and the score at every cut of a ranking, the strictest first.

    Equal scores are cut together.

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


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _rates(given: BoolArray, truth: BoolArray) -> Rates:
    right = int((given & truth).sum())
    return Rates(right / max(1, int(given.sum())), right / max(1, int(truth.sum())))
