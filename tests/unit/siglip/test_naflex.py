"""Native aspect ratio against transformers' own processor."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.siglip2.image_processing_pil_siglip2 import (
    Siglip2ImageProcessorPil,
    get_image_size_for_max_num_patches,
)

from serve_app.images.limits import ImageLimits
from serve_app.siglip.checkpoints import read_checkpoint
from serve_app.siglip.inputs import collate
from serve_app.siglip.naflex import fit_patch_grid, prepare_naflex
from serve_app.siglip.prepare import ImagePreparer
from tests.conftest import encoded, random_picture


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 6000), st.integers(1, 6000), st.sampled_from([14, 16, 32]), st.integers(64, 1024)
)
def test_grid_is_that_of_transformers(height: int, width: int, patch: int, budget: int) -> None:
    """The patch grid equals the reference's and never exceeds the budget."""
    rows, columns = fit_patch_grid(height, width, patch, budget)
    assert (rows * patch, columns * patch) == get_image_size_for_max_num_patches(
        height, width, patch, budget
    )
    assert rows * columns <= budget


@pytest.mark.parametrize("size", [(200, 120), (90, 300), (64, 64), (1, 500)])
@pytest.mark.parametrize("budget", [64, 256])
def test_patches_are_those_of_transformers(size: tuple[int, int], budget: int) -> None:
    """Normalised patches, mask and shape equal the reference processor's."""
    image = random_picture(*size)
    processor = Siglip2ImageProcessorPil(patch_size=16, resample=2)
    expected = processor(image, max_num_patches=budget, return_tensors="np")
    prepared = prepare_naflex(image, 16, budget, 2)
    patches = len(prepared.pixel_values)
    assert prepared.spatial_shape == tuple(expected["spatial_shapes"][0])
    assert expected["pixel_attention_mask"][0].sum() == patches
    normalised = prepared.pixel_values.astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(normalised, expected["pixel_values"][0, :patches], atol=1e-6)


def test_max_num_patches_is_honoured(tiny, tmp_path: Path) -> None:
    """Trap 7: the configured number of patches counts, not the processor's class default of 256."""
    checkpoint = read_checkpoint(tiny("siglip2-naflex"))
    data = encoded(random_picture(400, 300))
    sizes = {
        n: len(ImagePreparer(checkpoint, ImageLimits(), n).prepare(data).pixel_values)
        for n in (64, 256, 576)
    }
    assert sizes[64] <= 64 < sizes[256] <= 256 < sizes[576] <= 576


def test_batch_is_padded_to_its_longest_image_only() -> None:
    """Mixed shapes share a batch, padded to the longest one; the mask marks the padding."""
    small, wide = (
        prepare_naflex(image, 16, 64, 2)
        for image in (Image.new("RGB", (64, 64)), random_picture(500, 40))
    )
    batch = collate([small, wide])
    longest = max(len(small.pixel_values), len(wide.pixel_values))
    assert batch.pixel_values.shape == (2, longest, 768)
    assert batch.pixel_attention_mask is not None
    assert batch.pixel_attention_mask.sum(axis=1).tolist() == [
        len(small.pixel_values),
        len(wide.pixel_values),
    ]
    for image, again in zip((small, wide), batch.split(), strict=True):
        np.testing.assert_array_equal(image.pixel_values, again.pixel_values)
        assert image.spatial_shape == again.spatial_shape
