"""Reads PNG and APNG headers, and the chunks after the image data.

Source: the W3C's Portable Network Graphics Specification, third edition.
"""

import struct
import zlib
from dataclasses import dataclass, field

from serve_app.errors import ImageTooLarge, UnsupportedImage
from serve_app.images.header import ImageHeader, Piece, damaged, fields
from serve_app.images.orientation import orientation_of

MAX_CHUNKS = 8_192
"""Maximum number of chunks. libpng writes 8 KiB per chunk, so a PNG of 20 MiB has 2,560."""

USUAL_METADATA_CHUNKS = 64
USUAL_COMPRESSED_BYTES = 1_000
"""Maximum size of compressed metadata that is passed to Pillow.

Deflate expands at most 1,032-fold, so Pillow unpacks at most 1 MiB, which is its own limit. It
would refuse an image with larger metadata.
"""

MAX_PROFILE_BYTES = 1 << 18

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_NEEDED = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT"}
_COMPRESSED = {b"zTXt", b"iTXt", b"iCCP"}
_RAW_PROFILE = b"Raw profile type exif\0"
_XMP = b"XML:com.adobe.xmp\0"


@dataclass(slots=True)
class _Chunks:
    count: int = 0
    metadata: int = 0
    compressed_nbytes: int = 0
    transparency: bytes | None = None
    exif: bytes | None = None
    profile: bytes | None = None
    xmp: bytes | None = None
    kept: list[Piece] = field(default_factory=list)


def read_png(data: bytes) -> ImageHeader:
    """Read the header and the chunks of a PNG, which may be truncated behind its header.

    Raises:
        InvalidImage: The header is truncated, damaged or present twice.
        UnsupportedImage: The specification does not allow the colour type with this depth.
        ImageTooLarge: It has more than `MAX_CHUNKS` chunks.
    """
    if data[12:16] != b"IHDR":
        raise damaged()
    length, _, width, height, depth, colour, _, _, interlace = fields(">I4sIIBBBBB", data, 8)
    if length != 13 or not width or not height:
        raise damaged()
    if depth not in _DEPTHS.get(colour, ()):
        raise UnsupportedImage(
            f"PNGs of colour type {colour} and {depth} bits are not supported. Save the image "
            "again."
        )

    chunks = _walk(data)

    channels = _CHANNELS[colour]
    row_nbytes = 1 + (width * channels * depth + 7) // 8
    pixel_nbytes = 4
    conversion = ""
    if colour in (0, 3):
        pixel_nbytes = 2 if depth == 16 else 1
        conversion = "deep" if depth == 16 else "grey"
    if colour in (4, 6) or chunks.transparency is not None:
        conversion = "alpha"

    unusual = (
        chunks.metadata > USUAL_METADATA_CHUNKS or chunks.compressed_nbytes > USUAL_COMPRESSED_BYTES
    )
    return ImageHeader(
        format="PNG",
        width=width,
        height=height,
        coded_nbytes=len(data),
        pixel_nbytes=pixel_nbytes,
        channels=channels,
        depth=depth,
        orientation=orientation_of(chunks.exif or chunks.profile, chunks.xmp),
        conversion=conversion,
        interlaced=bool(interlace),
        raw_nbytes=row_nbytes * height,
        pieces_walked=chunks.count,
        transparent=_transparent_colour(chunks.transparency, colour, depth),
        keep=tuple(chunks.kept) if unusual else (),
    )


def _walk(data: bytes) -> _Chunks:
    found = _Chunks()
    offset = 8
    end = len(data)
    found.kept.append((0, 8))
    while offset + 8 <= end:
        length = int.from_bytes(data[offset : offset + 4], "big")
        kind = data[offset + 4 : offset + 8]
        stop = offset + 12 + length
        found.count += 1
        if found.count > MAX_CHUNKS:
            raise ImageTooLarge(
                f"The PNG has more than {MAX_CHUNKS:,} chunks, which is the limit. Save it again."
            )

        if kind in _NEEDED:
            if kind == b"IHDR" and found.count > 1:  # Pillow would use the last one
                raise damaged()
            if kind == b"tRNS":
                found.transparency = data[offset + 8 : stop - 4]
            found.kept.append((offset, min(stop, end)))
        else:
            found.metadata += 1
            _note_metadata(found, data, kind, offset + 8, min(offset + 8 + length, end))

        if kind == b"IEND":
            break
        offset = stop
    return found


def _transparent_colour(chunk: bytes | None, colour: int, depth: int) -> tuple[int, ...]:
    """Return the samples of the transparent colour of grey and RGB images.

    Source: PNG, third edition, 11.3.1.1: 2 bytes per sample, whose lowest `depth` bits count.
    """
    channels = _CHANNELS[colour]
    if chunk is None or colour not in (0, 2) or len(chunk) < 2 * channels:
        return ()
    mask = (1 << depth) - 1
    return tuple(sample & mask for sample in struct.unpack_from(f">{channels}H", chunk))


def _note_metadata(found: _Chunks, data: bytes, kind: bytes, start: int, stop: int) -> None:
    if kind in _COMPRESSED:
        found.compressed_nbytes += stop - start
    if kind == b"eXIf":
        found.exif = data[start : min(stop, start + 65_536)]
    elif kind in (b"tEXt", b"zTXt") and data.startswith(_RAW_PROFILE, start):
        found.profile = _hexadecimal(data[start + len(_RAW_PROFILE) : stop], kind == b"zTXt")
    elif kind == b"iTXt" and data.startswith(_XMP, start):
        found.xmp = _international(data[start + len(_XMP) : stop])


def _hexadecimal(text: bytes, compressed: bool) -> bytes | None:
    """Return the EXIF block that ImageMagick writes in hexadecimal, after three header lines."""
    try:
        if compressed:
            text = zlib.decompressobj().decompress(text[1:], MAX_PROFILE_BYTES)
        return bytes.fromhex(b"".join(text[:MAX_PROFILE_BYTES].split(b"\n")[3:]).decode("ascii"))
    except (ValueError, zlib.error):
        return None


def _international(text: bytes) -> bytes | None:
    compressed = text[:1] == b"\1"
    parts = text[2:].split(b"\0", 2)
    if len(parts) < 3:
        return None
    if not compressed:
        return parts[2]
    try:
        return zlib.decompressobj().decompress(parts[2], MAX_PROFILE_BYTES)
    except zlib.error:
        return None
