"""Reads GIF headers, up to the first frame.

Source: the GIF89a specification of CompuServe, 1990.
"""

from dataclasses import dataclass, field

from serve_app.errors import ImageTooLarge
from serve_app.images.header import ImageHeader, Piece, damaged, fields

MAX_BLOCKS = 65_536
"""Maximum number of blocks before the first frame.

Skipping them takes about 10 ms; they can contain 16 MiB of comments.
"""

MAX_EXTENSIONS = 4_096

USUAL_BLOCKS = 256
"""Maximum number of blocks in a header that is passed to Pillow as it is.

From larger headers, metadata is removed, because Pillow concatenates the blocks of a comment one by
one, which takes quadratic time.
"""

_EXTENSION = 0x21
_FRAME = 0x2C
_END = 0x3B
_GRAPHIC_CONTROL = 0xF9


@dataclass(slots=True)
class _Blocks:
    """The blocks before the first frame."""

    frame: int = 0
    """Offset of the frame's descriptor, after its separator."""
    transparent: bool = False
    count: int = 0
    kept: list[Piece] = field(default_factory=list)


def read_gif(data: bytes) -> ImageHeader:
    """Read the header of a GIF; the canvas grows to hold its first frame, as in Pillow.

    Raises:
        InvalidImage: It is truncated or damaged.
        ImageTooLarge: More than `MAX_BLOCKS` blocks or `MAX_EXTENSIONS` precede the first frame.
    """
    width, height, flags = fields("<HHB", data, 6)
    start = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    blocks = _walk(data, start)
    left, upper, frame_width, frame_height = fields("<HHHH", data, blocks.frame)
    width = max(width, left + frame_width)
    height = max(height, upper + frame_height)
    if not width or not height:
        raise damaged()

    keep = ((0, start), *blocks.kept, (blocks.frame - 1, len(data)))
    return ImageHeader(
        format="GIF",
        width=width,
        height=height,
        coded_nbytes=len(data),
        pixel_nbytes=1,
        channels=1,
        conversion="alpha" if blocks.transparent else "grey",
        raw_nbytes=frame_width * frame_height,
        interlaced=bool(fields("<B", data, blocks.frame + 8)[0] & 0x40),
        keep=keep if blocks.count > USUAL_BLOCKS else (),
    )


def _walk(data: bytes, offset: int) -> _Blocks:
    """Skip the extensions before the first frame, and keep those that affect its pixels."""
    found = _Blocks()
    for _ in range(MAX_EXTENSIONS):
        (kind,) = fields("<B", data, offset)
        if kind == _FRAME:
            found.frame = offset + 1
            return found
        if kind == _END:
            raise damaged()

        stop = offset + 1
        if kind == _EXTENSION:
            label, size = fields("<BB", data, offset + 1)
            stop = _skip_blocks(data, offset + 2, found)
            if label == _GRAPHIC_CONTROL:
                if size:
                    found.transparent = bool(fields("<B", data, offset + 3)[0] & 1)
                found.kept.append((offset, stop))
        offset = stop
    raise _too_many("extensions", MAX_EXTENSIONS)


def _skip_blocks(data: bytes, offset: int, found: _Blocks) -> int:
    """Return the offset after a sequence of blocks, which ends with an empty one."""
    end = len(data)
    while offset < end:
        size = data[offset]
        offset += 1 + size
        if not size:
            return offset
        found.count += 1
        if found.count > MAX_BLOCKS:
            raise _too_many("blocks", MAX_BLOCKS)
    raise damaged()


def _too_many(what: str, limit: int) -> ImageTooLarge:
    return ImageTooLarge(
        f"The GIF has more than {limit:,} {what} before its first frame, which is the limit. Save "
        "it again without metadata."
    )
