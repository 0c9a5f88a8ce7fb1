"""Native aspect ratio: the largest patch grid that keeps an image's proportions within a budget of
patches.

Not here: fixed resolution (`preprocess.py`).
"""

import math

import numpy as np
from PIL import Image

from serve_app.siglip.images.conversion import Area
from serve_app.siglip.inputs import PreparedImage, Uint8Array
from serve_app.siglip.tiles import Box

SEARCH_TOLERANCE = 1e-5
MIN_PATCHES = 64
MAX_PATCHES = 1024
"""Patches that SigLIP 2 NaFlex is used with.

Source: trained up to 1,024 (google-research/big_vision #168).
"""


def fit_patch_grid(
    height: int, width: int, patch_size: int, max_num_patches: int
) -> tuple[int, int]:
    """Return rows and columns of the patch grid that an image is resized to.

    Source: `get_image_size_for_max_num_patches` of transformers 5.23 (itself from big_vision's
    `pp/proj/image_text`): a binary search for the largest scale at which both sides, rounded up to
    whole patches, stay within the budget.
    """

    def grid(scale: float) -> tuple[int, int]:
        return tuple(max(1, math.ceil(side * scale / patch_size)) for side in (height, width))  # type: ignore[return-value]

    low = SEARCH_TOLERANCE / 10
    high = 100.0
    while high - low >= SEARCH_TOLERANCE:
        middle = (low + high) / 2
        rows, columns = grid(middle)
        low, high = (middle, high) if rows * columns <= max_num_patches else (low, middle)
    return grid(low)


def patchify(pixels: Uint8Array, patch_size: int) -> Uint8Array:
    """Cut (H, W, 3) into (N, P·P·3) patches, row by row."""
    height, width, channels = pixels.shape
    rows = height // patch_size
    columns = width // patch_size
    blocks = pixels.reshape(rows, patch_size, columns, patch_size, channels).transpose(
        0, 2, 1, 3, 4
    )
    return np.ascontiguousarray(blocks.reshape(rows * columns, patch_size * patch_size * channels))


def prepare_naflex(
    image: Image.Image,
    patch_size: int,
    max_num_patches: int,
    resample: int,
    box: Box | None = None,
    area: Area | None = None,
    full_size: tuple[int, int] | None = None,
) -> PreparedImage:
    """Resize an RGB image, or a part of it, to its patch grid and cut it into patches of uint8.

    Args:
        image: An RGB image of any size.
        patch_size: Side of a patch in pixels.
        max_num_patches: Largest number of patches.
        resample: Pillow's filter number.
        box: Part of the image that is prepared; None for the whole.
        area: The part that counts as the whole, if some pixels at an edge do so in part only.
        full_size: Width and height of the whole image in full, if it was decoded smaller.
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
