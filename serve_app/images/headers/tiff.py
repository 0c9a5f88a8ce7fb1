"""Reads TIFF and BigTIFF headers: the first directory, reduced to the tags that decoding needs.

A directory can contain any number of tags with values of any size, sub-directories and further
pages. Pillow reads them all when it opens an image, and again when it loads the pixels. The decoder
therefore gets a new directory with only the `_NEEDED` tags, appended to the original bytes.

Source: TIFF revision 6.0, Adobe's supplements, and the BigTIFF design of libtiff.
"""

import struct
from dataclasses import dataclass

from serve_app.errors import ImageTooLarge, UnsupportedImage
from serve_app.images.header import ImageHeader, damaged, fields
from serve_app.images.headers.jpeg import MAX_SCANS, count_scan_markers
from serve_app.images.orientation import ORIENTATION_TAG, upright_if_unknown, xmp_orientation

MAX_ENTRIES = 4_096
MAX_SAMPLES = 8

COMPRESSIONS = {
    1: "raw",
    2: "fax",
    3: "fax",
    4: "fax",
    5: "lzw",
    7: "jpeg",
    8: "deflate",
    32773: "packbits",
    32946: "deflate",
    34925: "lzma",
    50000: "zstd",
}
"""Supported codings by the value of the tag Compression.

Old JPEG, ThunderScan, SGI's logarithmic and 16-bit packings and WEBP are not supported, because
they are rare and their cost is unknown.
"""

_WIDTH = 256
_HEIGHT = 257
_BITS = 258
_COMPRESSION = 259
_PHOTOMETRIC = 262
_STRIP_OFFSETS = 273
_SAMPLES = 277
_ROWS_PER_STRIP = 278
_PLANAR = 284
_TILE_WIDTH = 322
_TILE_HEIGHT = 323
_TILE_OFFSETS = 324
_XMP = 700
_NEEDED = {
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, 266, _STRIP_OFFSETS, _SAMPLES),
    *(_ROWS_PER_STRIP, 279, _PLANAR, 292, 293, 317, 320),
    *(_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, 325, 338, 339),
    *(347, 529, 530, 531, 532),
}
"""Tags that affect pixels. Resolution, orientation, sub-directories and texts do not."""

_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""Struct codes of the types BYTE, SHORT, LONG and LONG8."""
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: int
    count: int
    value: bytes
    """The last field of the entry: the value itself, or its offset."""


@dataclass(frozen=True, slots=True)
class _Directory:
    data: bytes
    order: str
    big: bool
    entries: dict[int, _Entry]

    def values(self, tag: int, default: tuple[int, ...], limit: int) -> tuple[int, ...]:
        """Return at most `limit` integers of a tag."""
        entry = self.entries.get(tag)
        if entry is None:
            return default
        if entry.kind not in _INTEGERS or not entry.count:
            raise damaged("TIFF directory")
        layout = f"{self.order}{min(entry.count, limit)}{_INTEGERS[entry.kind]}"
        if _SIZES[entry.kind] * entry.count <= len(entry.value):
            return fields(layout, entry.value, 0)
        (offset,) = struct.unpack(self.order + ("Q" if self.big else "I"), entry.value)
        return fields(layout, self.data, offset)

    def value(self, tag: int, default: int) -> int:
        """Return the first integer of a tag."""
        return self.values(tag, (default,), 1)[0]


def read_tiff(data: bytes) -> ImageHeader:
    """Read the first directory of a TIFF.

    Raises:
        InvalidImage: It is truncated, damaged, or has a needed tag twice.
        UnsupportedImage: The compression is not one of `COMPRESSIONS`.
        ImageTooLarge: JPEG-compressed strips have more than `MAX_SCANS` scans beyond their first.
    """
    directory = _directory(data)
    compression = directory.value(_COMPRESSION, 1)
    if compression not in COMPRESSIONS:
        raise UnsupportedImage(
            f"TIFF compression {compression} is not supported. Save the image with LZW or Deflate."
        )
    width = directory.value(_WIDTH, 0)
    height = directory.value(_HEIGHT, 0)
    samples = directory.value(_SAMPLES, 1)
    if not width or not height or not 1 <= samples <= MAX_SAMPLES:
        raise damaged("TIFF directory")

    depth = max(directory.values(_BITS, (1,), MAX_SAMPLES))
    photometric = directory.value(_PHOTOMETRIC, 0)
    planes = samples if directory.value(_PLANAR, 1) == 2 else 1
    raw_nbytes, block_nbytes, blocks = _blocks(directory, width, height, samples // planes * depth)
    variant = COMPRESSIONS[compression]
    scans = _extra_scans(data, blocks * planes) if variant == "jpeg" else 0
    orientation = directory.value(ORIENTATION_TAG, 0)
    if ORIENTATION_TAG not in directory.entries and _XMP in directory.entries:
        orientation = _orientation_in_xmp(directory)

    return ImageHeader(
        format="TIFF",
        width=width,
        height=height,
        coded_nbytes=len(data),
        pixel_nbytes=_pixel_nbytes(samples, depth, photometric),
        variant=variant,
        channels=samples,
        depth=depth,
        orientation=upright_if_unknown(orientation),
        conversion=_conversion(samples, depth, photometric),
        raw_nbytes=raw_nbytes * planes,
        block_nbytes=block_nbytes,
        scans=1 + scans,
        pieces_walked=blocks * planes if variant == "raw" else 0,
        keep=_without_metadata(directory),
    )


def _directory(data: bytes) -> _Directory:
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise damaged()
    (version,) = fields(order + "H", data, 2)
    if version not in (42, 43):
        raise UnsupportedImage("The data is not a TIFF that can be read. Save the image again.")
    big = version == 43
    # Pillow reads a big-endian BigTIFF as a classic TIFF, and therefore another directory.
    if big and order == ">":
        raise UnsupportedImage("Big-endian BigTIFFs are not supported. Save the image as a TIFF.")
    if big and fields(order + "HH", data, 4) != (8, 0):
        raise damaged()
    (start,) = fields(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = fields(order + ("Q" if big else "H"), data, start)
    if count > MAX_ENTRIES:
        raise damaged("TIFF directory")

    layout, step, first = (order + "HHQ8s", 20, 8) if big else (order + "HHI4s", 12, 2)
    stop = start + first + step * count
    if stop > len(data):
        raise damaged("TIFF directory")
    entries: dict[int, _Entry] = {}
    for tag, kind, values, value in struct.iter_unpack(layout, data[start + first : stop]):
        if tag in entries and tag in _NEEDED:  # decoders use different ones of two equal tags
            raise damaged("TIFF directory")
        entries.setdefault(tag, _Entry(kind, values, value))
    return _Directory(data, order, big, entries)


def _blocks(directory: _Directory, width: int, height: int, bits: int) -> tuple[int, int, int]:
    """Return the bytes of a padded plane, the bytes of a block, and the number of blocks.

    A block is a strip or a tile.

    Args:
        directory: The image's directory.
        width: Width in pixels.
        height: Height in pixels.
        bits: Total bits of a pixel's samples in one plane.
    """
    if _TILE_OFFSETS in directory.entries or _TILE_WIDTH in directory.entries:
        across = directory.value(_TILE_WIDTH, 0)
        down = directory.value(_TILE_HEIGHT, 0)
        if not across or not down:
            raise damaged("TIFF directory")
        columns = -(-width // across)
    else:
        across = width
        columns = 1
        down = min(directory.value(_ROWS_PER_STRIP, height) or height, height)
    rows = -(-height // down)
    block_nbytes = (across * bits + 7) // 8 * down
    return block_nbytes * columns * rows, block_nbytes, columns * rows


def _pixel_nbytes(samples: int, depth: int, photometric: int) -> int:
    """Return the bytes of a pixel in Pillow. Source: `TiffImagePlugin.OPEN_INFO`."""
    if photometric in (0, 1, 3, 6) and samples == 1 and depth <= 16:
        return 2 if depth > 8 else 1
    return 4


def _conversion(samples: int, depth: int, photometric: int) -> str:
    """Return `ImageHeader.conversion`. Source: `TiffImagePlugin.OPEN_INFO`."""
    if photometric == 8:
        return "lab"
    if photometric == 5:
        return "cmyk"
    if photometric in (2, 6) and samples == 3:
        return ""
    if samples > 1:
        return "alpha"
    return "deep" if depth > 8 else "grey"


def _extra_scans(data: bytes, blocks: int) -> int:
    """Return an upper bound of the scans of JPEG-compressed blocks beyond the first of each."""
    max_count = blocks + MAX_SCANS
    count = count_scan_markers(data, 0, max_count)
    if count > max_count:
        raise ImageTooLarge(
            f"The TIFF's JPEG data has more than {MAX_SCANS} additional scans, which is the limit. "
            "Save the image with LZW or Deflate."
        )
    return max(0, count - blocks)


def _orientation_in_xmp(directory: _Directory) -> int:
    entry = directory.entries[_XMP]
    if entry.count <= len(entry.value):
        return 1
    (offset,) = struct.unpack(directory.order + ("Q" if directory.big else "I"), entry.value)
    return xmp_orientation(directory.data[offset : offset + entry.count]) or 1


def _without_metadata(directory: _Directory) -> tuple[tuple[int, int] | bytes, ...]:
    """Return the file with a single directory of only the needed tags, at its end."""
    order = directory.order
    big = directory.big
    kept = {tag: entry for tag, entry in sorted(directory.entries.items()) if tag in _NEEDED}
    layout = order + ("HHQ8s" if big else "HHI4s")

    end = len(directory.data)
    padding = bytes(-end % 8)
    table = b"".join(
        struct.pack(layout, tag, entry.kind, entry.count, entry.value)
        for tag, entry in kept.items()
    )
    count = struct.pack(order + ("Q" if big else "H"), len(kept))
    following = bytes(8 if big else 4)
    pointer = struct.pack(order + ("Q" if big else "I"), end + len(padding))
    start = 8 if big else 4
    return (0, start), pointer, (start + len(pointer), end), padding + count + table + following
