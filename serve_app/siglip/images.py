"""From the bytes of a picture to RGB pixels, bounded in formats and in size.

Orientation is applied, transparency is laid on white, and every mode Pillow knows ends as 8-bit RGB: hub
configurations carry `do_convert_rgb: null`, with which transformers' own processors raise on all of these.

Not here: resizing to what the model sees (`preprocess.py`, `naflex.py`).
"""

import functools
import io
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from PIL import AvifImagePlugin, ExifTags, Image, ImageOps, UnidentifiedImageError, features

from serve_app.errors import ImageTooLarge, InvalidImage, UnsupportedImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
"""Pillow's names of the formats that may be read; its other decoders are never tried on a stranger's bytes."""
HEIF_PACKAGE = "pillow_heif"

_SIGNATURES = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF8", "GIF"), (b"BM", "BMP"), (b"II", "TIFF"), (b"MM", "TIFF"))
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIF", b"heix": "HEIF", b"mif1": "HEIF", b"msf1": "HEIF", b"hevc": "HEIF"}

DRAFT_MARGIN = 2.0
"""JPEGs are decoded at no less than this many times the size the model needs. At 2 the resized pixels differ from
those of a full decode by at most 1 of 255, and a 12-megapixel photo costs a quarter of the time."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What is refused before it is decoded."""

    max_pixels: int = 50_000_000
    formats: tuple[str, ...] = FORMATS


@functools.cache
def readable_formats(asked: tuple[str, ...] = FORMATS) -> tuple[str, ...]:
    """Return those of `asked` that a decoder is installed for: AVIF is a part of most builds of Pillow, HEIF a package."""
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a thread for each core otherwise, in every decoding thread
    has_heif = "HEIF" in asked and find_spec(HEIF_PACKAGE) is not None
    if has_heif:
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False, decode_threads=1)
    present = {"AVIF": features.check("avif"), "HEIF": has_heif}
    return tuple(name for name in asked if present.get(name, True))


def signature_of(data: bytes) -> str:
    """Return the format that the first bytes look like, by Pillow's name; `other` for none that may be read.

    Source: the formats' own signatures, and the brands of ISO/IEC 23008-12 for AVIF and HEIF.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "other")
    return next((name for start, name in _SIGNATURES if data.startswith(start)), "other")


def decode_image(data: bytes, limits: ImageLimits, target_px: int | None = None) -> Image.Image:
    """Decode a picture to RGB, upright, on white, first frame only.

    Args:
        data: The encoded picture.
        limits: Bounds checked against the header, before any pixel is decoded.
        target_px: Side in pixels of the square (or the square of equal area) that the result will be resized to; lets
            JPEGs be decoded smaller. None for full size.

    Raises:
        UnsupportedImage: The bytes are none of the formats of `limits`, or of one that no decoder is installed for.
        ImageTooLarge: The header announces more pixels than `limits` allow.
        InvalidImage: The picture is truncated or damaged.
    """
    image = _open(data, readable_formats(limits.formats))
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


def picture_size(data: bytes, limits: ImageLimits) -> tuple[int, int]:
    """Return width and height in pixels of a picture held upright, from its header alone.

    Raises:
        RequestError: It is no picture that is read here; see `decode_image`.
    """
    image = _open(data, readable_formats(limits.formats))
    sideways = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if sideways else image.size


def _open(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        raise UnsupportedImage(f"The data is not a picture that can be read. Send one of {', '.join(formats)}.") from error
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
