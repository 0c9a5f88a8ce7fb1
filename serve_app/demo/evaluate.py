"""Mean average precision of a tagger's scores on scenes whose content is known.

Not here: what the scenes are (`scenes.py`).
"""

import numpy as np
import numpy.typing as npt


def average_precision(scores: npt.NDArray[np.floating], truth: npt.NDArray[np.bool_]) -> float:
    """Return the mean, over the true items, of the precision at their rank.

    Args:
        scores: (B,) any monotone score.
        truth: (B,) which items are true; at least one is.
    """
    order = np.argsort(-scores, kind="stable")
    hits = truth[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


def mean_average_precision(scores: npt.NDArray[np.floating], truth: npt.NDArray[np.bool_]) -> float:
    """Return the mean of every label's average precision; labels that are never true are left out.

    Args:
        scores: (B, T) any monotone score.
        truth: (B, T) which label is true of which image.
    """
    present = np.flatnonzero(truth.any(axis=0))
    return float(np.mean([average_precision(scores[:, t], truth[:, t]) for t in present]))
