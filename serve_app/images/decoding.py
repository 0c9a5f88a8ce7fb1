"""Decodes images to RGB pixels within limits of format, size, CPU time and memory.

The orientation is applied, transparency is composited on white, and every mode of Pillow is
converted to 8-bit RGB. With the hub's `do_convert_rgb: null`, transformers' own processors would
raise for such images.

Not here: headers (`header_reading.py`), the choice and the cost of a decode (`decoding_plan.py`,
`cost.py`), resizing (`siglip/preprocess.py`).
"""

import dataclasses
import io

from PIL import Image, UnidentifiedImageError

from serve_app.errors import ImageTooLarge, UnsupportedImage
from serve_app.images.conversion import has_transparency, on_white, to_rgb, upright
from serve_app.images.cost import check, predict
from serve_app.images.decoding_plan import DecodingPlan, plan_decoding
from serve_app.images.detail import has_fine_detail
from serve_app.images.header import ImageHeader, damaged, kept_bytes
from serve_app.images.header_reading import read_header
from serve_app.images.limits import ImageLimits

_MODE_NBYTES = {"1": 1, "L": 1, "P": 1}


def decode_image(data: bytes, limits: ImageLimits, target_px: int | None = None) -> Image.Image:
    """Decode the first frame of an image to upright RGB on white.

    Args:
        data: The encoded image.
        limits: Limits that the header is checked against before any decoder runs.
        target_px: Side in pixels of the square (or of the square of equal area) that the result is
            resized to, so that JPEGs may be decoded smaller. None for full size.

    Raises:
        UnsupportedImage: The bytes match no format of `limits`, or one without a decoder.
        ImageTooLarge: The image exceeds one of `limits`.
        InvalidImage: The image is truncated or damaged.
    """
    plan = plan_decoding(read_header(data, limits.formats), target_px, None, limits)
    return decode_as_planned(data, plan, limits)


def decode_as_planned(data: bytes, plan: DecodingPlan, limits: ImageLimits) -> Image.Image:
    """Decode the first frame of an image to upright RGB on white, as its plan says.

    Raises:
        UnsupportedImage: The format has no decoder.
        ImageTooLarge: The image exceeds one of `limits`.
        InvalidImage: The image is truncated or damaged.
    """
    header = plan.header
    image = _open(kept_bytes(data, header), header)
    confirmed = _confirmed(image, header)
    if confirmed is not header:
        check(confirmed, predict(confirmed, plan.scale, plan.resizing), limits)

    try:
        _load(image, data, header, plan.scale)
        if plan.sharp_scale < plan.scale and has_fine_detail(image):
            del image  # frees its pixels before the second decode
            image = _open(kept_bytes(data, header), header)
            _load(image, data, header, plan.sharp_scale)
        # The decoder of HEIF applies the orientation itself.
        turned = image if header.format == "HEIF" else upright(image, header.orientation)
        del image  # frees the pixels before the orientation, which are another copy
        return to_rgb(turned)
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error and others.
        raise damaged("data") from error


def image_size(data: bytes, limits: ImageLimits) -> tuple[int, int]:
    """Return width and height in pixels of an upright image, from its header alone.

    Raises:
        UnsupportedImage: The bytes match no format of `limits`, or one without a decoder.
        InvalidImage: The header is truncated or damaged.
        ImageTooLarge: It has too many scans or chunks.
    """
    return read_header(data, limits.formats).size


def _open(data: bytes, header: ImageHeader) -> Image.Image:
    """Let Pillow read the header, with only the decoder of its format."""
    try:
        return Image.open(io.BytesIO(data), formats=(header.format,))
    except UnidentifiedImageError as error:
        raise UnsupportedImage(
            f"The image is not a {header.format} that can be read. Save it again, or as a JPEG."
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(
            "The image has far more pixels than are supported. Send it smaller."
        ) from error
    except Exception as error:
        raise damaged() from error


def _load(image: Image.Image, data: bytes, header: ImageHeader, scale: int) -> None:
    """Decode the pixels, a JPEG smaller by a whole factor.

    A PNG's transparent colour is converted to the range of the decoded values, or made white.
    """
    if scale > 1:
        size = (header.width // scale, header.height // scale)
        image.draft(image.mode if image.mode in ("L", "RGB") else None, size)
    image.load()
    if not header.transparent:
        return
    if header.decoded_twice:
        image.info.pop("transparency", None)
        on_white(image, _low_bytes(data, header), header.transparent)
    elif len(header.transparent) == 1:
        # Pillow scales grey values of fewer than 8 bits to 0 to 255, but not the transparent one.
        scale = 255 // ((1 << header.depth) - 1) if header.depth < 8 else 1
        image.info["transparency"] = header.transparent[0] * scale
    else:
        image.info["transparency"] = header.transparent


def _low_bytes(data: bytes, header: ImageHeader) -> Image.Image:
    """Decode the low bytes of a 16-bit RGB PNG.

    Pillow keeps the high byte of each sample, which is the low one if the order is reversed.
    """
    image = _open(kept_bytes(data, header), header)
    tiles = [tile._replace(args="RGB;16L") for tile in image.tile]  # type: ignore[attr-defined]
    image.tile = tiles  # type: ignore[attr-defined]
    image.load()
    return image


def _confirmed(image: Image.Image, header: ImageHeader) -> ImageHeader:
    """Compare Pillow's reading with the header, so that an attacker cannot exploit a difference.

    Returns:
        The header, with a transparency that only Pillow found.

    Raises:
        InvalidImage: Pillow reads a different size, or pixels with more bytes.
    """
    expected = header.size if header.format == "HEIF" else (header.width, header.height)
    pixel_nbytes = 2 if image.mode.startswith("I;16") else _MODE_NBYTES.get(image.mode, 4)
    if image.size != expected or pixel_nbytes > header.pixel_nbytes:
        raise damaged()
    if has_transparency(image) and header.conversion not in ("alpha", "lab"):
        return dataclasses.replace(header, conversion="alpha")
    if image.mode == "LAB" and header.conversion != "lab":
        raise damaged()
    return header
