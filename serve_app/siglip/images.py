"""From the bytes of a picture to RGB pixels, bounded in formats and in size.

Orientation is applied, transparency is laid on white, and every mode Pillow knows ends as 8-bit RGB: hub
configurations carry `do_convert_rgb: null`, with which transformers' own processors raise on all of these.

Not here: resizing to what the model sees (`preprocess.py`, `naflex.py`).
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from serve_app.errors import ImageTooLarge, InvalidImage, UnsupportedImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow's names of the formats that are read; its other decoders are never tried on a stranger's bytes."""

DRAFT_MARGIN = 2.0
"""JPEGs are decoded at no less than this many times the size the model needs. At 2 the resized pixels differ from
those of a full decode by at most 1 of 255, and a 12-megapixel photo costs a quarter of the time."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What is refused before it is decoded."""

    max_pixels: int = 50_000_000


def decode_image(data: bytes, limits: ImageLimits, target_px: int | None = None) -> Image.Image:
    """Decode a picture to RGB, upright, on white, first frame only.

    Args:
        data: The encoded picture.
        limits: Bounds checked against the header, before any pixel is decoded.
        target_px: Side in pixels of the square (or the square of equal area) that the result will be resized to; lets
            JPEGs be decoded smaller. None for full size.

    Raises:
        UnsupportedImage: The bytes are none of `FORMATS`.
        ImageTooLarge: The header announces more pixels than `limits` allow.
        InvalidImage: The picture is truncated or damaged.
    """
    image = _open(data)
    if image.width * image.height > limits.max_pixels:
        raise ImageTooLarge(
            f"The picture has {image.width}×{image.height} pixels; at most {limits.max_pixels:,} are read. Send it smaller."
        )
    if target_px is not None and image.format == "JPEG":
        side = int(DRAFT_MARGIN * target_px)  # neither side is decoded below this
        image.draft(image.mode if image.mode in ("L", "RGB") else None, (side, side))
    try:
        image.load()
        return _to_rgb(_upright(image))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error, IndexError, ...
        raise InvalidImage("The picture is truncated or damaged. Check that the whole file was sent.") from error


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnsupportedImage(f"The data is not a picture that can be read. Send one of {', '.join(FORMATS)}.") from error
    except Image.DecompressionBombError as error:
        raise ImageTooLarge("The picture has far more pixels than are read. Send it smaller.") from error
    except Exception as error:
        raise InvalidImage("The picture's header is damaged. Check that the whole file was sent.") from error


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; `exif_transpose` alone would copy pictures that are upright already."""
    return ImageOps.exif_transpose(image) if image.getexif().get(ExifTags.Base.Orientation, 1) != 1 else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _high_depth_to_rgb(image)
    if "transparency" in image.info or "A" in image.getbands() or "a" in image.getbands():
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
    return image.convert("RGB")


def _high_depth_to_rgb(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey (0 to 65,535) and floating-point grey (0 to 1, or 0 to 255) to 8 bits; Pillow would clip."""
    values = np.array(image, np.float32)  # one copy, changed in place: these pictures may have 50 megapixels
    if image.mode == "F":
        np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        factor = 255.0 if values.max(initial=0) <= 1 else 1.0
    else:
        factor = 1 / 257
    np.multiply(values, factor, out=values)
    np.clip(np.rint(values, out=values), 0, 255, out=values)
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")
