"""Reads WEBP headers.

Source: RFC 9649 (container), RFC 6386 (VP8), and the WebP Lossless Bitstream Specification.
"""

from serve_app.images.header import ImageHeader, damaged, fields
from serve_app.images.orientation import orientation_of

MAX_CHUNKS = 4_096
"""Maximum number of chunks that are searched for EXIF and XMP, which follow the frames."""

_ALPHA_FLAG = 0x10


def read_webp(data: bytes) -> ImageHeader:
    """Read the header of a still or animated WEBP; the coding is that of the first frame.

    Raises:
        InvalidImage: It is truncated or damaged.
    """
    kind = data[12:16]
    alpha = False
    exif = None
    xmp = None

    if kind == b"VP8X":
        flags = fields("<B", data, 20)[0]
        alpha = bool(flags & _ALPHA_FLAG)
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        if len(data) < 30:
            raise damaged()
        kind, has_alpha_chunk, exif, xmp = _extended(data)
        alpha |= has_alpha_chunk
    elif kind == b"VP8L":
        bits = fields("<I", data, 21)[0]
        width = (bits & 0x3FFF) + 1
        height = (bits >> 14 & 0x3FFF) + 1
        alpha = bool(bits >> 28 & 1)
    elif kind == b"VP8 ":
        if data[23:26] != b"\x9d\x01\x2a":
            raise damaged()
        width, height = (side & 0x3FFF for side in fields("<HH", data, 26))
    else:
        raise damaged()
    if not width or not height:
        raise damaged()

    return ImageHeader(
        format="WEBP",
        width=width,
        height=height,
        coded_nbytes=len(data),
        variant="lossless" if kind == b"VP8L" else "lossy",
        channels=4 if alpha else 3,
        conversion="alpha" if alpha else "",
        orientation=orientation_of(exif, xmp),
    )


def _extended(data: bytes) -> tuple[bytes, bool, bytes | None, bytes | None]:
    """Return the first frame's coding, whether it has alpha, and the EXIF and XMP chunks."""
    coding = b"VP8 "
    frame_seen = False
    alpha = False
    exif = None
    xmp = None
    offset = 12
    for _ in range(MAX_CHUNKS):
        kind = data[offset : offset + 4]
        if len(kind) < 4 or offset + 8 > len(data):
            break

        length = int.from_bytes(data[offset + 4 : offset + 8], "little")
        start = offset + 8
        stop = offset + 8 + length
        if kind == b"ALPH":
            alpha |= not frame_seen
        elif kind == b"ANMF" and not frame_seen:
            frame_seen = True
            inner = data[start + 16 : start + 20]
            alpha |= inner == b"ALPH"
            coding = b"VP8L" if inner == b"VP8L" else b"VP8 "
        elif kind in (b"VP8 ", b"VP8L") and not frame_seen:
            frame_seen = True
            coding = kind
        elif kind == b"EXIF" and exif is None:
            exif = data[start : min(stop, start + 65_536)]
        elif kind == b"XMP " and xmp is None:
            xmp = data[start:stop]

        offset = stop + (length & 1)  # chunks have an even length
    return coding, alpha, exif, xmp
