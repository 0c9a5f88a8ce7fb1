"""Limits of the images that are decoded."""

from dataclasses import dataclass
from typing import Literal

from serve_app.images.formats import FORMATS

ImageDecoding = Literal["fast", "exact"]
"""Whether JPEGs may be decoded smaller than they are stored: `fast`, or `exact`."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits above which an image is refused before it is decoded.

    Attributes:
        max_pixels: Largest width × height in pixels.
        formats: Pillow's names of the allowed formats.
        max_side_px: Largest width or height in pixels.
        max_cost: Largest predicted CPU time, in units of that of a 12-megapixel baseline JPEG.
        max_decode_bytes: Largest predicted memory of decoding, without the encoded bytes.
        decoding: Whether JPEGs may be decoded smaller.
    """

    max_pixels: int = 50_000_000
    formats: tuple[str, ...] = FORMATS
    max_side_px: int = 32_768
    max_cost: float = 10.0
    max_decode_bytes: int = 200 * 2**20
    decoding: ImageDecoding = "fast"
