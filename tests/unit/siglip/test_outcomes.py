"""A poisoned image fails only itself."""

import numpy as np
import pytest

from serve_app.errors import InferenceFailed
from serve_app.siglip.inputs import ImageBatch, PreparedImage, collate
from serve_app.siglip.outcomes import encode_apart

POISON = 13
NAN = 14


def batch_of(values: list[int]) -> ImageBatch:
    return collate([PreparedImage(np.full((2, 2, 3), value, np.uint8)) for value in values])


def encode(batch: ImageBatch) -> np.ndarray:
    """Raise if one pixel is poison, as a kernel would; give NaN for another."""
    values = batch.pixel_values[:, 0, 0, 0]
    if (values == POISON).any():
        raise RuntimeError("CUDA error: device-side assert")
    embeds = np.ones((len(batch), 4), np.float32) * values[:, None]
    embeds[values == NAN] = np.nan
    return embeds


@pytest.mark.parametrize("poisoned", [[0], [7], [0, 3, 7], list(range(8))])
def test_only_the_poisoned_images_fail(poisoned: list[int]) -> None:
    """However many of eight images poison the batch, the others are encoded, in their places."""
    values = [POISON if i in poisoned else i + 1 for i in range(8)]
    encoded = encode_apart(encode, batch_of(values), width=4)
    for i, error in enumerate(encoded.errors):
        if i in poisoned:
            assert isinstance(error, InferenceFailed)
            assert "CUDA" not in str(error)
        else:
            assert error is None
            assert encoded.image_embeds[i, 0] == i + 1


def test_nan_is_an_error_and_not_an_answer() -> None:
    """An embedding that is not finite fails its image and no other."""
    encoded = encode_apart(encode, batch_of([1, NAN, 3]), width=4)
    assert [error is None for error in encoded.errors] == [True, False, True]


def test_parts_keep_outcomes_together() -> None:
    """Cutting a merged result apart keeps rows and errors aligned."""
    encoded = encode_apart(encode, batch_of([1, NAN, 3]), width=4).part(1, 3)
    assert len(encoded) == 2
    assert encoded.errors[0] is not None
    assert encoded.image_embeds[1, 0] == 3
