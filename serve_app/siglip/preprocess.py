"""Fixed-resolution preprocessing: an RGB picture squashed to the square that the checkpoint was trained on.

Pixels stay uint8 here; rescaling and normalising happen on the device (`encoder.py`), which keeps a prepared
384×384 image at 0.44 MB instead of 1.77 MB on its way there.

Not here: native aspect ratio (`naflex.py`), decoding (`images.py`).
"""

import numpy as np
import numpy.typing as npt
from PIL import Image


def resize_square(image: Image.Image, size_px: int, resample: int, reducing_gap: float | None = None) -> npt.NDArray[np.uint8]:
    """Resize an RGB image to a square, ignoring its aspect ratio, as the SigLIP processors do.

    Args:
        image: An RGB image of any size.
        size_px: Side of the square in pixels, the checkpoint's `image_size`.
        resample: Pillow's filter number from the checkpoint's preprocessor configuration.
        reducing_gap: Shrink by whole factors first, down to this many times the square; None for one exact step.

    Returns:
        (H, W, 3) uint8 with H = W = `size_px`.
    """
    if image.size != (size_px, size_px):
        image = image.resize((size_px, size_px), Image.Resampling(resample), reducing_gap=reducing_gap)
    return np.asarray(image)
