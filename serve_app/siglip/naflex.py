"""Preprocessing with the native aspect ratio, for NaFlex checkpoints.

An image is resized to the largest patch grid that keeps its proportions and has at most
`max_num_patches` patches.

Not here: fixed resolution (`preprocess.py`).
"""

import math

import numpy as np
from PIL import Image

from serve_app.images.conversion import Area
from serve_app.siglip.inputs import PreparedImage, Uint8Array
from serve_app.siglip.tiles import Box

SEARCH_TOLERANCE = 1e-5
MIN_PATCHES = 64
MAX_PATCHES = 1024
"""Maximum number of patches of an image.

Source: SigLIP 2 NaFlex was trained with up to 1,024 (google-research/big_vision #168).
"""


def fit_patch_grid(
    height: int, width: int, patch_size: int, max_num_patches: int
) -> tuple[int, int]:
    """Return rows and columns of the patch grid that an image is resized to.

    A binary search finds the largest scale at which the grid, with both sides rounded up to whole
    patches, has at most `max_num_patches` patches.

    Source: `get_image_size_for_max_num_patches` of transformers 5.23, which is taken from
    big_vision's `pp/proj/image_text`.
    """

    def grid(scale: float) -> tuple[int, int]:
        rows = max(1, math.ceil(height * scale / patch_size))
        columns = max(1, math.ceil(width * scale / patch_size))
        return rows, columns

    low = SEARCH_TOLERANCE / 10
    high = 100.0
    while high - low >= SEARCH_TOLERANCE:
        middle = (low + high) / 2
        rows, columns = grid(middle)
        if rows * columns <= max_num_patches:
            low = middle
        else:
            high = middle
    return grid(low)


def patchify(pixels: Uint8Array, patch_size: int) -> Uint8Array:
    """Cut (H, W, 3) pixels into (N, P·P·3) patches, row by row."""
    height, width, channels = pixels.shape
    rows = height // patch_size
    columns = width // patch_size
    blocks = pixels.reshape(rows, patch_size, columns, patch_size, channels)
    patches = blocks.transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(patches.reshape(rows * columns, patch_size * patch_size * channels))


def prepare_naflex(
    image: Image.Image,
    patch_size: int,
    max_num_patches: int,
    resample: int,
    box: Box | None = None,
    area: Area | None = None,
    full_size: tuple[int, int] | None = None,
) -> PreparedImage:
    """Resize an RGB image, or a part of it, to its patch grid and cut it into uint8 patches.

    Args:
        image: An RGB image of any size.
        patch_size: Side of a patch in pixels.
        max_num_patches: Largest number of patches.
        resample: Pillow's filter number.
        box: Part of the image that is prepared; None for the whole.
        area: Exact bounds of the whole image, if pixels at an edge are only partly covered.
        full_size: Width and height at full size, if the image was decoded smaller.
    """
    whole = (0, 0, image.width, image.height)
    part = image if box in (None, whole) else image.crop(box)
    if area is None or part is not image:
        area = (0, 0, part.width, part.height)
    width, height = full_size if full_size is not None and part is image else part.size
    rows, columns = fit_patch_grid(height, width, patch_size, max_num_patches)
    size = (columns * patch_size, rows * patch_size)
    resized = part.resize(size, Image.Resampling(resample), box=area)
    return PreparedImage(patchify(np.asarray(resized), patch_size), (rows, columns))
