"""Reads AVIF and HEIF headers: size, orientation and coded frames of the primary image.

Not here: the boxes (`boxes.py`), the bitstreams (`bitstreams.py`).
"""

from serve_app.errors import UnsupportedImage
from serve_app.images.header import ImageHeader, Piece, damaged, fields
from serve_app.images.headers.bitstreams import (
    HEVC_SPS,
    CodedFrame,
    av1_frame,
    hevc_frame,
    is_first_slice,
)
from serve_app.images.headers.boxes import ItemTable, item_table

FORMATS = {b"av01": "AVIF", b"hvc1": "HEIF"}
"""Image format by the type of coded items.

libheif supports more types, such as uncompressed images, overlays and JPEG, which are refused.
"""

MAX_NAL_UNITS = 512

_ALPHA_TYPES = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1")
_METADATA_ITEMS = (b"Exif", b"mime")


def read_heif(data: bytes) -> ImageHeader:
    """Read the header of an AVIF or HEIF image.

    Raises:
        InvalidImage: It is damaged, or its bitstream has larger frames than the file declares.
        UnsupportedImage: The image is neither AV1 or HEVC nor a grid of these.
    """
    table = item_table(data)
    tiles, canvas = _tiles(table, data)
    kind = table.types.get(tiles[0], b"")
    if kind not in FORMATS or any(table.types.get(tile) != kind for tile in tiles):
        raise UnsupportedImage(
            "This kind of HEIF image is not supported. Send an AVIF, or a HEIF coded as HEVC."
        )

    # Every frame must fit into the size that the file declares for it.
    reader = _Frames(table, data, kind)
    tile_size = _size(table, data, tiles[0])
    frames = [reader.largest(tile) for tile in tiles]
    if any(_exceeds(frame, tile_size, kind) for frame in frames):
        raise damaged()

    alphas = _alpha_items(table, data, {table.primary, *tiles})
    masks = [reader.largest(item) for item in alphas]
    if any(_exceeds(mask, canvas, kind) for mask in masks):
        raise damaged()

    frames.extend(masks)
    depth = max(frame.depth for frame in frames)
    samples = sum(f.width * f.height * f.samples_per_pixel * f.frames for f in frames)
    channels = 4 if alphas else 3
    # libheif crops to the clean aperture. libavif does not, and neither does Pillow with it.
    width, height = _cropped(table, data, canvas) if kind == b"hvc1" else canvas
    return ImageHeader(
        format=FORMATS[kind],
        width=width,
        height=height,
        coded_nbytes=len(data),
        variant="grid" if len(tiles) > 1 else "",
        channels=channels,
        depth=depth,
        orientation=_orientation(table, data),
        conversion="alpha" if alphas else "",
        raw_nbytes=int(samples) * (2 if depth > 8 else 1),
        block_nbytes=channels * canvas[0] * canvas[1],
        keep=_without_metadata(table, data) if kind == b"av01" else (),
    )


def _tiles(table: ItemTable, data: bytes) -> tuple[list[int], tuple[int, int]]:
    """Return the coded items of the primary image, and its width and height."""
    primary = table.primary
    if table.types.get(primary) != b"grid":
        return [primary], _size(table, data, primary)
    tiles = table.referred(b"dimg", primary)
    grid = _item_data(table, data, primary)
    if len(grid) < 8 or not tiles:
        raise damaged()

    wide = grid[1] & 1
    width, height = fields(">II" if wide else ">HH", grid, 4)
    rows = grid[2] + 1
    columns = grid[3] + 1
    across, down = _size(table, data, tiles[0])
    sizes = {_size(table, data, tile) for tile in tiles}

    if rows * columns != len(tiles) or len(sizes) != 1:
        raise damaged()
    if (columns - 1) * across >= width or columns * across < width:
        raise damaged()
    if (rows - 1) * down >= height or rows * down < height:
        raise damaged()
    return tiles, (width, height)


def _size(table: ItemTable, data: bytes, item: int) -> tuple[int, int]:
    sizes = [
        fields(">II", data, start + 4)
        for kind, start, _ in table.properties_of(item)
        if kind == b"ispe"
    ]
    if len(sizes) != 1 or not all(sizes[0]):
        raise damaged()
    width, height = sizes[0]
    return width, height


def _cropped(table: ItemTable, data: bytes, canvas: tuple[int, int]) -> tuple[int, int]:
    """Return the size of the primary image's clean aperture, or of the canvas if it has none."""
    for kind, start, _ in table.properties_of(table.primary):
        if kind != b"clap":
            continue
        width, width_divisor, height, height_divisor = fields(">IIII", data, start)
        if not width_divisor or not height_divisor:
            raise damaged()
        size = width // width_divisor, height // height_divisor
        if not (0 < size[0] <= canvas[0] and 0 < size[1] <= canvas[1]):
            raise damaged()
        return size
    return canvas


def _item_data(table: ItemTable, data: bytes, item: int) -> bytes:
    extents = table.extents.get(item)
    if not extents:
        raise damaged()
    if len(extents) == 1:
        return data[slice(*extents[0])]
    return b"".join(data[start:stop] for start, stop in extents)


def _alpha_items(table: ItemTable, data: bytes, images: set[int]) -> list[int]:
    """Return the coded items that contain the transparency of any of the images."""
    found = []
    for kind, item, targets in table.references:
        if kind != b"auxl" or not images.intersection(targets):
            continue
        types = [
            data[start + 4 : stop]
            for name, start, stop in table.properties_of(item)
            if name == b"auxC"
        ]
        if any(value.startswith(_ALPHA_TYPES) for value in types):
            coded = table.referred(b"dimg", item) if table.types.get(item) == b"grid" else [item]
            found.extend(coded)
    return found


class _Frames:
    """Reads the coded frames of items; shared parameter sets are read once."""

    def __init__(self, table: ItemTable, data: bytes, kind: bytes) -> None:
        self._table = table
        self._data = data
        self._kind = kind
        self._parameters: dict[int, tuple[int, CodedFrame | None]] = {}

    def largest(self, item: int) -> CodedFrame:
        """Return the largest frame that an item's bitstream declares."""
        extents = self._table.extents.get(item)
        if not extents:
            raise damaged()
        if len(extents) == 1:
            coded = self._data
            (start, stop) = extents[0]
        else:
            coded = _item_data(self._table, self._data, item)
            start = 0
            stop = len(coded)

        stop = min(stop, len(coded))
        if self._kind == b"av01":
            frame = av1_frame(coded, start, stop)
        else:
            frame = self._hevc(item, coded, start, stop)
        if frame is None:
            raise damaged("bitstream")
        return frame

    def _hevc(self, item: int, coded: bytes, offset: int, stop: int) -> CodedFrame | None:
        """Return the frame of an HEVC item; its parameter sets are in a property or its data."""
        configurations = [
            (start, end) for kind, start, end in self._table.properties_of(item) if kind == b"hvcC"
        ]
        if len(configurations) != 1:
            raise damaged()
        start, end = configurations[0]
        if start not in self._parameters:
            self._parameters[start] = _configuration(self._data, start, end)
        length_size, shared = self._parameters[start]

        units: list[bytes] = []
        first_slices = 0
        count = 0
        while offset + length_size < stop:
            length = int.from_bytes(coded[offset : offset + length_size], "big")
            offset += length_size
            unit = coded[offset : offset + min(length, 512)]
            first_slices += is_first_slice(unit)
            if unit and unit[0] >> 1 & 63 == HEVC_SPS:
                units.append(unit)
            count += 1
            if count > MAX_NAL_UNITS or first_slices > 1:
                raise damaged("bitstream")
            offset += length
        inner = hevc_frame(units)
        frames = [frame for frame in (shared, inner) if frame is not None]
        return max(frames, key=lambda frame: frame.width * frame.height, default=None)


def _configuration(data: bytes, start: int, stop: int) -> tuple[int, CodedFrame | None]:
    """Return the size of unit lengths, and the largest frame in an `hvcC` property's sets."""
    length_size = 1 + (fields(">B", data, start + 21)[0] & 3)
    units: list[bytes] = []
    offset = start + 23
    for _ in range(fields(">B", data, start + 22)[0]):
        (count,) = fields(">H", data, offset + 1)
        offset += 3
        for _ in range(count):
            (length,) = fields(">H", data, offset)
            if offset + 2 + length > stop or len(units) > MAX_NAL_UNITS:
                raise damaged("bitstream")
            units.append(data[offset + 2 : offset + 2 + length])
            offset += 2 + length
    return length_size, hevc_frame(units)


def _exceeds(frame: CodedFrame, size: tuple[int, int], kind: bytes) -> bool:
    """Return whether a bitstream's frame is larger than the file declares.

    HEVC frames are padded to whole coding blocks of up to 64 pixels; AV1 frames are not.
    """
    margin = 64 if kind == b"hvc1" else 0
    return frame.width > size[0] + margin or frame.height > size[1] + margin


def _orientation(table: ItemTable, data: bytes) -> int:
    """Return rotation and mirroring of the primary image as an EXIF orientation.

    Source: ISO/IEC 23008-12, 6.5.10 and 6.5.12: counter-clockwise quarter turns, then a mirror
    axis; libavif's `irot` and `imir` to EXIF table.
    """
    turns = 0
    axis: int | None = None
    for kind, start, _ in table.properties_of(table.primary):
        if kind == b"irot":
            turns = fields(">B", data, start)[0] & 3
        elif kind == b"imir":
            axis = fields(">B", data, start)[0] & 1
    if axis is None:
        return (1, 8, 3, 6)[turns]
    # Axis 0 swaps top and bottom, axis 1 left and right.
    return ((4, 5, 2, 7), (2, 7, 4, 5))[axis][turns]


def _without_metadata(table: ItemTable, data: bytes) -> tuple[Piece, ...]:
    """Return an AVIF as a still image whose EXIF and XMP items have a type that decoders ignore.

    If the major brand is `avis`, libavif would read the sequence instead of the still image.
    """
    changes = [
        (offset, b"free")
        for item, offset in table.type_offsets.items()
        if table.types[item] in _METADATA_ITEMS
    ]
    if data[8:12] == b"avis":
        changes.append((8, b"avif"))
    if not changes:
        return ()
    pieces: list[Piece] = []
    position = 0
    for offset, replacement in sorted(changes):
        pieces.extend(((position, offset), replacement))
        position = offset + len(replacement)
    return (*pieces, (position, len(data)))
