"""Scores against torch in float64."""

import numpy as np
import torch

from serve_app.siglip.scoring import pair_logits, sigmoid, unit_norm


def test_sigmoid_has_no_overflow_and_equals_torch() -> None:
    """From -1,000 to 1,000 without a warning, to float32's precision."""
    values = np.array([-1000, -100, -15.9, -1, 0, 1, 100, 1000], np.float32)
    np.testing.assert_allclose(
        sigmoid(values),
        torch.sigmoid(torch.tensor(values, dtype=torch.float64)),
        rtol=1e-6,
        atol=1e-38,
    )


def test_logits_are_scale_times_cosine_plus_bias() -> None:
    """Two hand-made vectors at 60 degrees: 100 · 0.5 - 10 = 40."""
    image = np.array([[1.0, 0.0]], np.float32)
    text = np.array([[0.5, np.sqrt(0.75)], [-1.0, 0.0]], np.float32)
    np.testing.assert_allclose(pair_logits(image, text, 100.0, -10.0), [[40.0, -110.0]], rtol=1e-5)


def test_scores_are_float32_for_any_input() -> None:
    """Half-precision embeddings are scored in float32."""
    embeds = unit_norm(np.ones((2, 8), np.float16))
    assert pair_logits(embeds.astype(np.float16), embeds, 117.9, -12.9).dtype == np.float32
