"""Reads the orientation from EXIF and XMP metadata in bounded time."""

import re
import struct

ORIENTATION_TAG = 274
MAX_ENTRIES = 512
"""Maximum number of directory entries that are read. Cameras write fewer than 100."""

MAX_XMP_BYTES = 1 << 20
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_INTEGERS = {1: "B", 3: "H", 4: "I"}
"""Struct codes of the TIFF types BYTE, SHORT and LONG."""


def exif_orientation(exif: bytes) -> int | None:
    r"""Return the orientation tag of an EXIF block; None if it has none.

    Args:
        exif: A TIFF header and its directories, after any number of prefixes `Exif\0\0`.
    """
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return None

    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for index in range(min(count, MAX_ENTRIES)):
            entry = start + 2 + 12 * index
            tag, kind, values = struct.unpack_from(order + "HHI", exif, entry)
            if tag == ORIENTATION_TAG:
                if kind not in _INTEGERS or values != 1:
                    return 1
                return upright_if_unknown(
                    *struct.unpack_from(order + _INTEGERS[kind], exif, entry + 8)
                )
    except struct.error:
        return None
    return None


def xmp_orientation(xmp: bytes) -> int | None:
    """Return the orientation in an XMP packet; None if it has none."""
    match = _XMP_ORIENTATION.search(xmp, 0, MAX_XMP_BYTES)
    return upright_if_unknown(int(match[1])) if match else None


def orientation_of(exif: bytes | None, xmp: bytes | None) -> int:
    """Return the orientation, 1 to 8; EXIF has precedence, as in Pillow's `Image.getexif`."""
    found = exif_orientation(exif) if exif else None
    if found is None and xmp:
        found = xmp_orientation(xmp)
    return found or 1


def upright_if_unknown(value: int) -> int:
    """Return the value if it is an orientation, else 1."""
    return value if 1 <= value <= 8 else 1
