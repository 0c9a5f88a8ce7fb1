"""Converts images of every Pillow mode to upright 8-bit RGB, in strips of rows.

Converting in strips limits the working copies to a few megabytes; converting whole images would
need up to three more copies. Transparency is composited on white.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from serve_app.images.header import ImageHeader

Area = tuple[float, float, float, float]
"""Left, upper, right, lower, in pixels and fractions of pixels."""

STRIP_PIXELS = 1 << 19
"""Number of pixels in a strip; a copy as RGBA or float32 has 2 MiB."""

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition by EXIF orientation. Source: Pillow's `ImageOps.exif_transpose`."""


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Apply an EXIF orientation, 1 to 8; an upright image is returned unchanged."""
    method = _TRANSPOSITIONS.get(orientation)
    return image if method is None else image.transpose(method)


def upright_area(header: ImageHeader, image: Image.Image) -> Area:
    """Return the part of an upright decoded image that the stored pixels cover.

    A JPEG of 1,003 rows has 126 rows at an eighth of its size, but only 3 of 8 stored rows cover
    the last one. The part is therefore fractional. The orientation determines the position of the
    last row in the upright image.

    Args:
        header: The header of the image.
        image: The decoded image, upright.
    """
    columns, rows = (image.height, image.width) if header.orientation >= 5 else image.size
    scale = next(
        (
            s
            for s in (1, 2, 4, 8)
            if -(-header.width // s) == columns and -(-header.height // s) == rows
        ),
        1,
    )
    beyond_right = columns - header.width / scale if scale > 1 else 0.0
    beyond_bottom = rows - header.height / scale if scale > 1 else 0.0
    if header.orientation >= 5:
        beyond_right, beyond_bottom = beyond_bottom, beyond_right
    left = beyond_right if header.orientation in (2, 3, 6, 7) else 0.0
    upper = beyond_bottom if header.orientation in (3, 4, 7, 8) else 0.0
    return (left, upper, left + image.width - beyond_right, upper + image.height - beyond_bottom)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded image to RGB; an RGB image without transparency is returned unchanged."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    grey_scale = _grey_scale(image) if _is_high_depth(image) else 1.0
    if image.width * image.height <= STRIP_PIXELS:
        return _strip_to_rgb(image, grey_scale)

    converted = Image.new("RGB", image.size, None)
    for upper, strip in _strips(image):
        converted.paste(_strip_to_rgb(strip, grey_scale), (0, upper))
    return converted


def on_white(high: Image.Image, low: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """Make one colour of a 16-bit RGB image white.

    Args:
        high: RGB, the high byte of every sample.
        low: RGB, the low byte of every sample.
        colour: The 16-bit samples of the transparent colour.

    Returns:
        `high`, in which each pixel of that colour is white.
    """
    high_bytes = np.array([sample >> 8 for sample in colour], np.uint8)
    low_bytes = np.array([sample & 255 for sample in colour], np.uint8)
    for (upper, strip), (_, low_strip) in zip(_strips(high), _strips(low), strict=True):
        pixels = np.array(strip)
        same = (pixels == high_bytes) & (np.asarray(low_strip) == low_bytes)
        transparent = same.all(axis=2)
        if transparent.any():
            pixels[transparent] = 255
            high.paste(Image.fromarray(pixels), (0, upper))
    return high


def has_transparency(image: Image.Image) -> bool:
    """Return whether an image has transparency, so that it is composited on white."""
    bands = image.getbands()
    return "transparency" in image.info or "A" in bands or "a" in bands


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    rows = max(1, STRIP_PIXELS // image.width)
    for upper in range(0, image.height, rows):
        yield upper, image.crop((0, upper, image.width, min(upper + rows, image.height)))


def _strip_to_rgb(strip: Image.Image, grey_scale: float) -> Image.Image:
    if _is_high_depth(strip):
        return _high_depth_to_rgb(strip, grey_scale)
    if not has_transparency(strip):
        return strip.convert("RGB")
    if strip.mode == "La":  # Pillow converts premultiplied grey only to LA
        strip = strip.convert("LA")
    rgba = strip.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _is_high_depth(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _grey_scale(image: Image.Image) -> float:
    """Return the factor that scales an image's values to 0 to 255.

    16-bit grey has the range 0 to 65,535. Floating-point grey has the range 0 to 255 if any value
    is above 1, else 0 to 1.
    """
    if image.mode != "F":
        return 1 / 257
    largest = max(_finite(strip).max(initial=0) for _, strip in _strips(image))
    return 255.0 if largest <= 1 else 1.0


def _finite(strip: Image.Image) -> npt.NDArray[np.float32]:
    values = np.array(strip, np.float32)
    if strip.mode == "F":
        np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return values


def _high_depth_to_rgb(strip: Image.Image, grey_scale: float) -> Image.Image:
    """Scale 16-bit and floating-point grey to 8 bits; Pillow's own conversion would clip it."""
    values = _finite(strip)
    transparent = values == strip.info["transparency"] if "transparency" in strip.info else None
    np.multiply(values, grey_scale, out=values)
    np.clip(np.rint(values, out=values), 0, 255, out=values)
    if transparent is not None:
        values[transparent] = 255
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")
