"""Preprocessing for fixed-resolution checkpoints: resizing to a square.

Pixels stay uint8. Rescaling and normalization happen on the device (`towers/tower.py`), so a
prepared 384×384 image has 0.44 MB instead of 1.77 MB when it is sent to the encoder.

Not here: native aspect ratio (`naflex.py`), decoding (`images/decoding.py`).
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from serve_app.images.conversion import Area
from serve_app.siglip.tiles import Box


def resize_square(
    image: Image.Image,
    size_px: int,
    resample: int,
    reducing_gap: float | None = None,
    box: Box | None = None,
    area: Area | None = None,
) -> npt.NDArray[np.uint8]:
    """Resize an RGB image to a square, ignoring its aspect ratio, as the SigLIP processors do.

    Args:
        image: An RGB image of any size.
        size_px: Side of the square in pixels, the checkpoint's `image_size`.
        resample: Pillow's filter number from the checkpoint's preprocessor configuration.
        reducing_gap: Shrink by whole factors first, to at least this many times the square; None
            for a single exact resize.
        box: Part of the image that is resized; None for the whole.
        area: Exact bounds of the whole image, if pixels at an edge are only partly covered.

    Returns:
        (H, W, 3) uint8 with H = W = `size_px`.
    """
    resized = resize_box(image, box, (size_px, size_px), resample, reducing_gap, area)
    return np.asarray(resized)


def resize_box(
    image: Image.Image,
    box: Box | None,
    size: tuple[int, int],
    resample: int,
    reducing_gap: float | None = None,
    area: Area | None = None,
) -> Image.Image:
    """Resize a part of an image; the pixels are those of `image.crop(box).resize(size, ...)`.

    If the part is shrunk by whole factors first, it is not copied. The argument `box` of
    `Image.resize` is no substitute, because its filter also reads pixels outside the box.
    """
    whole = (0, 0, image.width, image.height)
    box = box or whole
    width = box[2] - box[0]
    height = box[3] - box[1]
    if reducing_gap is not None:
        # Source: `Image.resize` of Pillow, which uses the same factors.
        across = int(width / size[0] / reducing_gap) or 1
        down = int(height / size[1] / reducing_gap) or 1
        if across > 1 or down > 1:
            reduced = image.reduce((across, down), box=box)
            covered = area if area is not None and box == whole else (0, 0, width, height)
            left, upper, right, lower = covered
            reduced_area = (left / across, upper / down, right / across, lower / down)
            return reduced.resize(size, Image.Resampling(resample), box=reduced_area)

    if box == whole and area is not None and area != whole:
        return image.resize(size, Image.Resampling(resample), box=area)
    part = image if box == whole else image.crop(box)
    if part.size == size:
        return part
    return part.resize(size, Image.Resampling(resample))
