"""Reads the header of an image in any format, without a decoder.

Time and memory are bounded by the limits in each format's module (`headers/`). Most images take
tens of microseconds.

Not here: the cost of decoding (`cost.py`), decoding (`decoding.py`).
"""

from collections.abc import Callable

from serve_app.errors import UnsupportedImage
from serve_app.images.formats import readable_formats, signature_of
from serve_app.images.header import ImageHeader, damaged
from serve_app.images.headers.bmp import read_bmp
from serve_app.images.headers.gif import read_gif
from serve_app.images.headers.heif import read_heif
from serve_app.images.headers.jpeg import read_jpeg
from serve_app.images.headers.png import read_png
from serve_app.images.headers.tiff import read_tiff
from serve_app.images.headers.webp import read_webp

_READERS: dict[str, Callable[[bytes], ImageHeader]] = {
    "JPEG": read_jpeg,
    "PNG": read_png,
    "WEBP": read_webp,
    "GIF": read_gif,
    "BMP": read_bmp,
    "TIFF": read_tiff,
    "AVIF": read_heif,
    "HEIF": read_heif,
}


def read_header(data: bytes, formats: tuple[str, ...]) -> ImageHeader:
    """Read the header of an encoded image.

    Args:
        data: The encoded image.
        formats: Pillow's names of the allowed formats.

    Raises:
        UnsupportedImage: The bytes match none of these formats, or one without a decoder.
        InvalidImage: The header is truncated, damaged or contradicts itself.
        ImageTooLarge: It has too many scans or chunks.
    """
    readable = readable_formats(formats)
    kind = signature_of(data)
    # A container with the brand mif1 may contain AVIF or HEIF.
    if kind not in _READERS or not {"AVIF", "HEIF", kind}.intersection(readable):
        raise _unsupported(readable)
    if kind not in ("AVIF", "HEIF") and kind not in readable:
        raise _unsupported(readable)
    try:
        header = _READERS[kind](data)
    except (IndexError, ValueError, OverflowError) as error:
        raise damaged() from error
    if header.format not in readable:
        raise _unsupported(readable)
    return header


def _unsupported(readable: tuple[str, ...]) -> UnsupportedImage:
    return UnsupportedImage(
        f"The data is not an image that can be read. Send one of {', '.join(readable)}."
    )
