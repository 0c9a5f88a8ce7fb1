"""Confidences as responses show them, and the minimum score for a threshold.

A confidence is the sigmoid of a score, rounded to six significant digits. Every response, file and
table of the service shows these digits, so thresholds are compared with them and not with the
unrounded sigmoid: a client that sends a returned confidence back as its threshold gets that tag
again, whether the number came as JSON, as float32 from Parquet or as a float64.

Not here: what a score is (`scores.py`), which threshold a tag has (`selection.py`).
"""

import functools

import numpy as np
import numpy.typing as npt

from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.scoring import exact_sigmoid

Doubles = npt.NDArray[np.float64]

SIGNIFICANT_DIGITS = 6
"""Digits of a confidence. float32 holds them exactly enough to be read back as the same decimal."""
FLOAT32_ERROR = 1e-7
"""Relative tolerance of a threshold. A decimal that was stored as float32 is off by up to 6e-8; two
confidences of six digits differ by at least 1e-6."""
MIN_THRESHOLD = float(np.finfo(np.float32).tiny)
"""Smaller thresholds let every tag pass: float32 does not hold six digits of them."""


def confidences_of(scores: FloatArray) -> FloatArray:
    """Return the confidences (…) float32 of scores (…), which are logits."""
    exact = exact_sigmoid(scores)
    # smaller numbers do not have six digits, neither here nor as float32
    exact = np.where(exact < MIN_THRESHOLD, 0.0, exact)
    units = _unit_of(exact)
    return np.asarray(np.round(exact / units) * units, np.float32)


def min_scores_of(thresholds: npt.ArrayLike) -> FloatArray:
    """Return the minimum scores (…) float32 whose confidence reaches thresholds (…) in [0, 1].

    A threshold of 0 gives minus infinity; NaN stays NaN.
    """
    wanted = np.asarray(thresholds, np.float64)
    passes_all = wanted < MIN_THRESHOLD
    wanted = np.where(passes_all, 0.5, wanted)
    units = _unit_of(wanted)

    # the smallest confidence of six digits that is no less than the threshold
    digits = np.ceil(wanted / units * (1 - FLOAT32_ERROR))
    confidences = np.asarray(digits * units, np.float32)

    # halfway to the confidence below it; below a power of ten, confidences are ten times as dense
    is_power_of_ten = digits == 10 ** (SIGNIFICANT_DIGITS - 1)
    halfway = (digits - np.where(is_power_of_ten, 0.05, 0.5)) * units
    scores = np.asarray(np.log(halfway) - np.log1p(-halfway), np.float32)

    # the logarithms were rounded: decide exactly between the neighbouring float32
    above = np.nextafter(scores, np.float32(np.inf))
    below = np.nextafter(scores, np.float32(-np.inf))
    scores = np.where(confidences_of(scores) >= confidences, scores, above)
    scores = np.where(confidences_of(below) >= confidences, below, scores)
    return np.where(passes_all, np.float32(-np.inf), scores)


@functools.lru_cache(maxsize=1024)
def min_score_of(threshold: float) -> float:
    """Return the minimum score whose confidence reaches a threshold in [0, 1]."""
    return float(min_scores_of(threshold))


def _unit_of(values: Doubles) -> Doubles:
    """Return one unit of the last significant digit of each value; 1 for 0."""
    exponents = np.floor(np.log10(np.where(values > 0, values, 1.0)))
    exponents = np.where(values > 0, exponents, SIGNIFICANT_DIGITS - 1)
    return np.asarray(10.0 ** (exponents - (SIGNIFICANT_DIGITS - 1)))
