"""Lines through logits by logistic regression, with a Gaussian prior, in float64.

Not here: which lines a calibration has (`fitting.py`).
"""

import numpy as np
import numpy.typing as npt

from serve_app.tagging.evaluation import BoolArray

Matrix = npt.NDArray[np.float64]

NEWTON_STEPS = 200
CONVERGED = 1e-10


def fit_line(z: Matrix, y: BoolArray, start: Matrix, prior: Matrix) -> Matrix:
    """Return scale and offset (2,) of the most likely line, by logistic likelihood and a prior.

    Newton's method with step halving and a Gaussian prior. Source: Lin, Lin, Weng 2007, A note on
    Platt's probabilistic outputs; the prior replaces Platt's smoothed targets.

    Args:
        z: (n,) logits.
        y: (n,) which are true.
        start: (2,) start of the search, and mean of the prior.
        prior: (2, 2) precision of the prior.
    """
    features = np.stack([z, np.ones_like(z)], axis=1)

    def loss(line: Matrix) -> float:
        fitted = features @ line
        return float(
            np.logaddexp(0, fitted).sum()
            - fitted[y].sum()
            + 0.5 * (line - start) @ prior @ (line - start)
        )

    line = start.astype(np.float64)
    value = loss(start)
    for _ in range(NEWTON_STEPS):
        p = sigmoid(features @ line)
        gradient = features.T @ (p - y) + prior @ (line - start)
        curvature = features.T @ (features * (p * (1 - p))[:, None]) + prior + np.eye(2) * 1e-9
        step = np.linalg.solve(curvature, gradient)
        share = 1.0
        while share > CONVERGED and loss(line - share * step) > value - 1e-4 * share * float(
            gradient @ step
        ):
            share /= 2
        line = line - share * step
        gained = value - loss(line)
        value = loss(line)
        if gained < CONVERGED * (1 + abs(value)):
            break
    return line


def information(z: Matrix, line: Matrix) -> Matrix:
    """Return the Fisher information (2, 2) of some logits about a line."""
    p = sigmoid(line[0] * z + line[1])
    features = np.stack([z, np.ones_like(z)], axis=1)
    return np.asarray(features.T @ (features * (p * (1 - p))[:, None]))


def sigmoid(z: Matrix) -> Matrix:
    """Return the logistic sigmoid."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * z)))
