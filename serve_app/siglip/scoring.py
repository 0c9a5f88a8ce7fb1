"""Computes scores from embeddings in float32, whatever dtype the towers have.

In bfloat16, the similarity head would change logits by up to 0.43, which is about half of a small
probability. In float32 it costs one small matrix product.
"""

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidRequest
from serve_app.siglip.inputs import FloatArray


def unit_norm(embeddings: FloatArray) -> FloatArray:
    """Return (n, D) float32 rows scaled to length 1."""
    unit: FloatArray = np.asarray(embeddings, np.float32)
    unit = unit / np.linalg.norm(unit, axis=-1, keepdims=True)
    return unit


def check_width(embeddings: FloatArray, width: int) -> None:
    """Raise `InvalidRequest` for embeddings whose shape is not (n, D) with the checkpoint's D."""
    if embeddings.ndim != 2 or embeddings.shape[1] != width:
        shape = "×".join(map(str, embeddings.shape))
        raise InvalidRequest(
            f"The embeddings have the shape {shape}; this checkpoint's are n×{width}."
        )


def stored_embeddings(values: npt.NDArray[np.floating]) -> FloatArray:
    """Return stored embeddings (n, D) as float32 of unit norm, which float16 changes slightly.

    Raises:
        InvalidRequest: An embedding is zero or not finite.
    """
    embeds = np.asarray(values, np.float32)
    norms = np.linalg.norm(embeds, axis=-1)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        raise InvalidRequest(f"Embedding {int(bad[0])} is zero or not finite; it cannot be scored.")
    return unit_norm(embeds)


def pair_logits(
    image_embeds: FloatArray, text_embeds: FloatArray, logit_scale: float, logit_bias: float
) -> FloatArray:
    """Return `logits_per_image` (B, T) = logit_scale · image_embeds · text_embedsᵀ + logit_bias.

    Args:
        image_embeds: (B, D) float32, unit norm.
        text_embeds: (T, D) float32, unit norm, or the mean of such rows for a prompt ensemble.
        logit_scale: The temperature, already exponentiated.
        logit_bias: The learned bias.
    """
    images = np.asarray(image_embeds, np.float32)
    texts = np.asarray(text_embeds, np.float32)
    return np.float32(logit_scale) * (images @ texts.T) + np.float32(logit_bias)


def sigmoid(logits: npt.ArrayLike) -> FloatArray:
    """Return 1 / (1 + exp(-logits)) (…) float32, independent per tag."""
    return exact_sigmoid(logits).astype(np.float32)


def exact_sigmoid(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return 1 / (1 + exp(-logits)) (…) float64, without overflow.

    The result is float64, because in float32 a larger logit can have a smaller sigmoid.
    """
    exact = np.asarray(logits, np.float64)
    positive = np.exp(-np.abs(exact))
    return np.asarray(np.where(exact >= 0, 1 / (1 + positive), positive / (1 + positive)))
