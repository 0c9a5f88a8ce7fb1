"""Reads the boxes around the coded images of AVIF and HEIF files.

Source: ISO/IEC 14496-12 and 23008-12.

Not here: the bitstreams of the coded images (`bitstreams.py`).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from serve_app.images.header import damaged, fields

MAX_BOXES = 4_096
MAX_ITEMS = 1_024
"""Maximum number of items. libheif allows 1,000; a 48-megapixel iPhone photo has about 200."""

Property = tuple[bytes, int, int]
"""Kind of a property, and start and stop of its payload."""


@dataclass(slots=True)
class ItemTable:
    """The items of a file's `meta` box.

    Attributes:
        primary: ID of the primary image.
        types: Four-character type of each item.
        type_offsets: Offset of each item's type in the file.
        extents: Ranges of the file that contain each item's data.
        references: (kind, from, to) of each reference.
        properties: All properties.
        associations: 1-based indices into `properties`, of each item.
    """

    primary: int = 0
    types: dict[int, bytes] = field(default_factory=dict)
    type_offsets: dict[int, int] = field(default_factory=dict)
    extents: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    references: list[tuple[bytes, int, list[int]]] = field(default_factory=list)
    properties: list[Property] = field(default_factory=list)
    associations: dict[int, list[int]] = field(default_factory=dict)

    def properties_of(self, item: int) -> Iterator[Property]:
        """Yield the properties of an item in order."""
        for index in self.associations.get(item, []):
            if 1 <= index <= len(self.properties):
                yield self.properties[index - 1]

    def referred(self, kind: bytes, item: int) -> list[int]:
        """Return the items that an item refers to by references of a kind."""
        return [
            to
            for name, source, targets in self.references
            if (name, source) == (kind, item)
            for to in targets
        ]


def boxes(data: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each box, and start and stop of its payload.

    Raises:
        InvalidImage: A box exceeds its parent, or there are more than `MAX_BOXES` boxes.
    """
    for _ in range(MAX_BOXES):
        if start + 8 > stop:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        payload = start + 8
        if size == 1:
            (size,) = fields(">Q", data, payload)
            payload += 8
        end = start + size if size else stop
        if end > stop or end < payload:
            if kind != b"mdat":
                raise damaged()
            end = stop  # truncated: the decoder reports it
        yield kind, payload, end
        start = end
    raise damaged()


def item_table(data: bytes) -> ItemTable:
    """Read the items of a file.

    Raises:
        InvalidImage: There is no `meta` box, or it is damaged.
    """
    table = ItemTable()
    metas = [(start, stop) for kind, start, stop in boxes(data, 0, len(data)) if kind == b"meta"]
    if len(metas) != 1:
        raise damaged()

    inner = list(boxes(data, metas[0][0] + 4, metas[0][1]))
    kinds = {kind: (start, stop) for kind, start, stop in inner}
    if len(kinds) != len(inner) and any(
        sum(kind == known for kind, _, _ in inner) > 1
        for known in (b"pitm", b"iloc", b"iinf", b"iprp", b"iref")
    ):
        raise damaged()

    try:
        _read_primary(table, data, *kinds[b"pitm"])
        _read_types(table, data, *kinds[b"iinf"])
        _read_locations(table, data, kinds[b"iloc"][0], kinds.get(b"idat", (0, 0)))
        _read_properties(table, data, *kinds[b"iprp"])
    except (KeyError, struct.error) as error:
        raise damaged() from error
    if b"iref" in kinds:
        _read_references(table, data, *kinds[b"iref"])
    return table


def _read_primary(table: ItemTable, data: bytes, start: int, stop: int) -> None:
    version = data[start]
    (table.primary,) = fields(">I" if version else ">H", data, start + 4)


def _read_types(table: ItemTable, data: bytes, start: int, stop: int) -> None:
    first = start + (8 if data[start] else 6)
    for kind, offset, _ in boxes(data, first, stop):
        if kind != b"infe" or data[offset] < 2:
            continue
        wide = data[offset] > 2
        (item,) = fields(">I" if wide else ">H", data, offset + 4)
        type_offset = offset + (10 if wide else 8)
        table.types[item] = data[type_offset : type_offset + 4]
        table.type_offsets[item] = type_offset
        if len(table.types) > MAX_ITEMS:
            raise damaged()


def _read_locations(table: ItemTable, data: bytes, start: int, inner: tuple[int, int]) -> None:
    version = data[start]
    (sizes,) = fields(">H", data, start + 4)
    offset_size = sizes >> 12
    length_size = sizes >> 8 & 15
    base_size = sizes >> 4 & 15
    index_size = sizes & 15 if version in (1, 2) else 0
    if any(size not in (0, 4, 8) for size in (offset_size, length_size, base_size, index_size)):
        raise damaged()

    wide = version == 2
    (count,) = fields(">I" if wide else ">H", data, start + 6)
    offset = start + (10 if wide else 8)
    if count > MAX_ITEMS:
        raise damaged()

    for _ in range(count):
        (item,) = fields(">I" if wide else ">H", data, offset)
        offset += 4 if wide else 2
        method = 0
        if version in (1, 2):
            method = fields(">H", data, offset)[0] & 15
            offset += 2
        offset += 2  # data_reference_index

        base = int.from_bytes(data[offset : offset + base_size], "big")
        offset += base_size
        (extents,) = fields(">H", data, offset)
        offset += 2
        if extents > MAX_ITEMS or item in table.extents:
            raise damaged()

        table.extents[item] = []
        for _ in range(extents):
            offset += index_size
            relative = int.from_bytes(data[offset : offset + offset_size], "big")
            offset += offset_size
            length = int.from_bytes(data[offset : offset + length_size], "big")
            offset += length_size
            begin = base + relative + (inner[0] if method == 1 else 0)
            stop = inner[1] if method == 1 else len(data)
            end = min(begin + length, stop) if length else stop
            if method < 2:
                table.extents[item].append((begin, end))


def _read_properties(table: ItemTable, data: bytes, start: int, stop: int) -> None:
    for kind, first, last in boxes(data, start, stop):
        if kind == b"ipco":
            table.properties.extend(boxes(data, first, last))
        elif kind == b"ipma":
            _read_associations(table, data, first)


def _read_associations(table: ItemTable, data: bytes, start: int) -> None:
    version = data[start]
    flags = data[start + 3]
    (count,) = fields(">I", data, start + 4)
    if count > MAX_ITEMS:
        raise damaged()

    size = 2 if flags & 1 else 1
    mask = 0x7FFF if flags & 1 else 0x7F
    offset = start + 8
    for _ in range(count):
        (item,) = fields(">I" if version else ">H", data, offset)
        offset += 4 if version else 2
        (number,) = fields(">B", data, offset)
        offset += 1
        raw = [
            int.from_bytes(data[offset + size * i : offset + size * (i + 1)], "big") & mask
            for i in range(number)
        ]
        table.associations.setdefault(item, []).extend(raw)
        offset += size * number


def _read_references(table: ItemTable, data: bytes, start: int, stop: int) -> None:
    wide = bool(data[start])
    size = 4 if wide else 2
    for kind, offset, end in boxes(data, start + 4, stop):
        (source,) = fields(">I" if wide else ">H", data, offset)
        (count,) = fields(">H", data, offset + size)
        first = offset + size + 2
        if first + size * count > end:
            raise damaged()
        targets = fields(f">{count}{'I' if wide else 'H'}", data, first)
        table.references.append((kind, source, list(targets)))
