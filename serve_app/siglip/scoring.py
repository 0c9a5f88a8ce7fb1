"""From embeddings to scores, in float32 whatever the towers ran in.

A similarity head in bfloat16 moves logits by up to 0.43, about half of a small probability; in float32 it costs
one small matrix product.
"""

import numpy as np

from serve_app.siglip.inputs import FloatArray


def unit_norm(embeddings: FloatArray) -> FloatArray:
    """Return (n, D) float32 rows scaled to length 1."""
    unit: FloatArray = np.asarray(embeddings, np.float32)
    unit = unit / np.linalg.norm(unit, axis=-1, keepdims=True)
    return unit


def pair_logits(image_embeds: FloatArray, text_embeds: FloatArray, logit_scale: float, logit_bias: float) -> FloatArray:
    """Return `logits_per_image` (B, T) = logit_scale · image_embeds · text_embedsᵀ + logit_bias.

    Args:
        image_embeds: (B, D) float32, unit norm.
        text_embeds: (T, D) float32, unit norm, or a mean of such rows for a prompt ensemble.
        logit_scale: The temperature, already exponentiated.
        logit_bias: The learned bias.
    """
    images, texts = np.asarray(image_embeds, np.float32), np.asarray(text_embeds, np.float32)
    return np.float32(logit_scale) * (images @ texts.T) + np.float32(logit_bias)


def sigmoid(logits: FloatArray) -> FloatArray:
    """Return 1 / (1 + exp(-logits)), without overflow; independent per tag, never normalised across tags."""
    positive = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + positive), positive / (1 + positive)).astype(np.float32)
