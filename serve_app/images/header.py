"""The values in an image's header that determine the cost of decoding it."""

import struct
from dataclasses import dataclass

from serve_app.errors import InvalidImage

Piece = tuple[int, int] | bytes
"""A range of the encoded bytes (start, stop), or bytes that replace a range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """Values from the header of an encoded image, read without decoding.

    Attributes:
        format: Pillow's name of the format.
        width: Width in pixels as stored, before the orientation is applied.
        height: Height in pixels as stored.
        pixel_nbytes: Bytes of a decoded pixel in Pillow: 1, 2 or 4.
        variant: The coding, such as `progressive` or `lossless`, if it affects the decoder's speed.
        channels: Samples per pixel, as coded.
        depth: Bits per sample, as coded.
        orientation: EXIF orientation, 1 to 8; 1 if there is none.
        conversion: The conversion to RGB after decoding: empty for none, `grey` (also for black and
            white, and palettes), `cmyk`, `lab`, `deep` (grey of 16 bits or more) or `alpha`.
        interlaced: Whether the rows are stored in passes.
        raw_nbytes: Bytes of all samples that the decoder unpacks, with the padding of blocks,
            tiles and strips.
        block_nbytes: Bytes of the largest buffer that the decoder unpacks at once.
        scans: Passes over all coefficients (JPEG).
        full_size: Whether a JPEG is always decoded at full size, because Pillow reads it as one of
            several images (MPO).
        pieces_walked: Number of chunks, strips or tiles for which Pillow runs Python code.
        transparent: Samples of a PNG's transparent colour at the coded depth; empty if it has none,
            or another kind of transparency.
        keep: Pieces passed to the decoder instead of the whole file; empty for the whole file.
        coded_nbytes: Length of the encoded bytes.
    """

    format: str
    width: int
    height: int
    coded_nbytes: int
    pixel_nbytes: int = 4
    variant: str = ""
    channels: int = 3
    depth: int = 8
    orientation: int = 1
    conversion: str = ""
    interlaced: bool = False
    raw_nbytes: int = 0
    block_nbytes: int = 0
    scans: int = 1
    full_size: bool = False
    pieces_walked: int = 0
    transparent: tuple[int, ...] = ()
    keep: tuple[Piece, ...] = ()

    @property
    def decoded_twice(self) -> bool:
        """Whether the low bytes of the samples are decoded in addition to the high ones.

        Pillow decodes 16-bit RGB to its high bytes, but comparing a pixel with the transparent
        colour needs all bits.
        """
        return len(self.transparent) == 3 and self.depth == 16

    @property
    def area_px(self) -> int:
        """Number of pixels."""
        return self.width * self.height

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the upright image."""
        if self.orientation >= 5:
            return self.height, self.width
        return self.width, self.height


def kept_bytes(data: bytes, header: ImageHeader) -> bytes:
    """Return the bytes for the decoder: `data` itself, or a copy without metadata."""
    if not header.keep:
        return data
    view = memoryview(data)
    return b"".join(
        piece if isinstance(piece, bytes) else view[piece[0] : piece[1]] for piece in header.keep
    )


def damaged(what: str = "header") -> InvalidImage:
    """Return the error for an image whose header cannot be read or contradicts itself."""
    return InvalidImage(
        f"The image's {what} is damaged or truncated. Check that the whole file was sent."
    )


def fields(layout: str, data: bytes, offset: int) -> tuple[int, ...]:
    """Unpack integers at an offset.

    Raises:
        InvalidImage: The data is too short.
    """
    try:
        return struct.unpack_from(layout, data, offset)
    except struct.error as error:
        raise damaged() from error
