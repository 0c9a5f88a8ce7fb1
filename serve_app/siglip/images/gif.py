"""GIF headers, up to the first frame.

Source: the GIF89a specification of CompuServe, 1990.
"""

from serve_app.siglip.images.header import ImageHeader, damaged, fields

MAX_BLOCKS = 4_096
"""Blocks before the first frame, each of which Pillow reads in Python; 1 MiB of XMP fits in."""

_EXTENSION, _FRAME = 0x21, 0x2C
_GRAPHIC_CONTROL = 0xF9


def read_gif(data: bytes) -> ImageHeader:
    """Read the header of a GIF; the canvas grows to hold its first frame, as in Pillow.

    Raises:
        InvalidImage: It is truncated or damaged, or the first frame is behind more than
            `MAX_BLOCKS` blocks.
    """
    width, height, flags = fields("<HHB", data, 6)
    offset = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    transparent = False
    blocks = 0
    while True:
        (kind,) = fields("<B", data, offset)
        offset += 1
        blocks += 1
        if kind == _FRAME:
            break
        if kind == _EXTENSION:
            label, size = fields("<BB", data, offset)
            if label == _GRAPHIC_CONTROL and size:
                transparent = bool(fields("<B", data, offset + 2)[0] & 1)
            offset += 1
            while size:
                offset += 1 + size
                blocks += 1
                (size,) = fields("<B", data, offset)
                if blocks > MAX_BLOCKS:
                    break
            offset += 1
        if blocks > MAX_BLOCKS or kind == 0x3B:
            raise damaged()
    left, upper, frame_width, frame_height = fields("<HHHH", data, offset)
    width = max(width, left + frame_width)
    height = max(height, upper + frame_height)
    if not width or not height:
        raise damaged()
    return ImageHeader(
        format="GIF",
        width=width,
        height=height,
        coded_nbytes=len(data),
        pixel_nbytes=1,
        channels=1,
        conversion="alpha" if transparent else "grey",
        raw_nbytes=frame_width * frame_height,
        interlaced=bool(fields("<B", data, offset + 8)[0] & 0x40),
    )
