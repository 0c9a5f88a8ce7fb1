"""Encoded images of every format and mode, at any size, and images made to be expensive.

Used by `test_decode_cost.py` and by `bench/decode_cost.py`. Everything is made from a seed, and
what Pillow does not write (interlaced PNG, run-length BMP, tiled TIFF, odd JPEG scans) is written
here by hand.
"""

import functools
import io
import struct
import unittest.mock
import warnings
import zlib

import numpy as np
import numpy.typing as npt
import pillow_heif
from PIL import Image, ImageDraw, ImageFile, ImageFont

from serve_app.images.formats import readable_formats

Pixels = npt.NDArray[np.uint8]

ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)
"""First row, first column, row step and column step of each pass.

Source: PNG, third edition, 8.1.
"""


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a smooth RGB image with some noise, which compresses about as a photograph does."""
    tile = _photo_tile(seed)
    rows = -(-height // len(tile))
    columns = -(-width // len(tile))
    return Image.fromarray(np.tile(tile, (rows, columns, 1))[:height, :width])


@functools.cache
def _photo_tile(seed: int) -> Pixels:
    """Return 1024×1024 pixels, which are repeated: making new ones takes longer than encoding
    them.
    """
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (64, 64, 3), np.uint8)
    smooth = Image.fromarray(coarse).resize((1024, 1024), Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth).astype(np.int16)
    pixels += rng.integers(-6, 7, pixels.shape, dtype=np.int16)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an RGB image of noise."""
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    )


def flat(width: int, height: int) -> Image.Image:
    """Return an RGB image of one colour."""
    return Image.new("RGB", (width, height), (90, 120, 150))


def text_page(width: int, height: int, font_px: int = 40, ink: int = 0) -> Image.Image:
    """Return an RGB page of text on white."""
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(font_px)
    rng = np.random.default_rng(font_px)
    for top in range(height // 20, height - height // 20, int(1.3 * font_px)):
        letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz    "), 2 * width // font_px)
        draw.text((width // 20, top), "".join(letters), (ink, ink, ink), font)
    return page


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return an image's bytes in a format."""
    readable_formats()  # registers HEIF
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Pillow's buffer is too small for a progressive JPEG of noise otherwise.
        with unittest.mock.patch.object(ImageFile, "MAXBLOCK", 1 << 26):
            image.save(out, kind, **options)
    return out.getvalue()


def heif_grid(image: Image.Image, tile_px: int = 512, **options: object) -> bytes:
    """Return a HEIF whose image is a grid of tiles, as phones write it."""
    with unittest.mock.patch.object(pillow_heif.options, "GRID_TILE_SIZE", tile_px):
        return saved(image, "HEIF", **options)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Return a PNG chunk with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    size: tuple[int, int],
    colour: int,
    depth: int,
    content: str = "flat",
    interlaced: bool = False,
    row_filter: int = 4,
    extra: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """Return a PNG of a colour type and depth.

    Args:
        size: Width and height in pixels.
        colour: Colour type of the specification: 0, 2, 3, 4 or 6.
        depth: Bits of a sample.
        content: `flat`, or `noise` in every byte.
        interlaced: Whether the rows are stored in Adam7 passes.
        row_filter: Filter of every row; 4 (Paeth) is the slowest to undo.
        extra: Chunks before the image data.
        after: Chunks behind the image data.
    """
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    width, height = size
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    packer = zlib.compressobj(1)
    packed = []
    rng = np.random.default_rng(1)
    for row, column, row_step, column_step in passes:
        rows = -(-(height - row) // row_step)
        columns = -(-(width - column) // column_step)
        if rows <= 0 or columns <= 0:
            continue
        row_nbytes = (columns * channels * depth + 7) // 8
        step = max(1, (1 << 22) // (row_nbytes + 1))
        for first in range(0, rows, step):
            block = np.zeros((min(step, rows - first), row_nbytes + 1), np.uint8)
            if content == "noise":
                block[:] = rng.integers(0, 256, block.shape, np.uint8)
            block[:, 0] = row_filter
            packed.append(packer.compress(block.tobytes()))
    packed.append(packer.flush())
    palette = png_chunk(b"PLTE", bytes(range(256)) * 3) if colour == 3 else b""
    return png_of(size, colour, depth, b"".join(packed), interlaced, palette + extra, after)


def png_of(
    size: tuple[int, int],
    colour: int,
    depth: int,
    packed: bytes,
    interlaced: bool = False,
    extra: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """Return a PNG of packed rows, whatever is in them; see `png`."""
    head = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, int(interlaced))
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", head)
        + extra
        + png_chunk(b"IDAT", packed)
        + after
        + png_chunk(b"IEND", b"")
    )


def bmp_rle(size: tuple[int, int], runs: bytes, four_bits: bool = False) -> bytes:
    """Return a run-length BMP of some runs."""
    width, height = size
    bits, compression = (4, 2) if four_bits else (8, 1)
    palette = b"".join(bytes((i * 7 % 256, i, 255 - i, 0)) for i in range(1 << bits))
    start = 54 + len(palette)
    info = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(runs), 0, 0, 0, 0
    )
    return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + info + palette + runs


def jpeg_with_scans(data: bytes, count: int) -> bytes:
    """Return a progressive JPEG whose first scan of AC coefficients is repeated."""
    starts = []
    offset = data.find(b"\xff\xda")
    while offset >= 0:
        starts.append(offset)
        offset = data.find(b"\xff\xda", offset + 2)
    # The scan's Huffman tables stand before it and stay in force.
    second = starts[1]
    third = starts[2]
    stop = min(at for at in (data.find(b"\xff\xc4", second + 2), third) if at > 0)
    return data[:stop] + data[second:stop] * count + data[stop:]


def jpeg_arithmetic(size: tuple[int, int], coded: bytes, progressive: bool = False) -> bytes:
    """Return an arithmetic-coded 4:2:0 JPEG of bytes, any of which are a valid stream."""
    width, height = size
    quantisation = b"\xff\xdb\x00\x43\x00" + b"\x10" * 64
    frame = struct.pack(">BHHB", 8, height, width, 3) + b"\x01\x22\x00\x02\x11\x00\x03\x11\x00"
    marker = b"\xff\xca" if progressive else b"\xff\xc9"
    spectral = b"\x00\x00\x00" if progressive else b"\x00\x3f\x00"
    scan = b"\xff\xda\x00\x0c\x03\x01\x00\x02\x00\x03\x00" + spectral
    body = coded.replace(b"\xff", b"\xfe")
    return (
        b"\xff\xd8"
        + quantisation
        + marker
        + struct.pack(">H", 2 + len(frame))
        + frame
        + scan
        + body
        + b"\xff\xd9"
    )


def tiff(
    size: tuple[int, int],
    bits: tuple[int, ...],
    photometric: int,
    blocks: list[bytes],
    compression: int = 1,
    tile: tuple[int, int] | None = None,
    extra: dict[int, tuple[int, ...]] | None = None,
) -> bytes:
    """Return a little-endian TIFF of coded strips or tiles.

    Args:
        size: Width and height in pixels.
        bits: Of each sample.
        photometric: The tag PhotometricInterpretation.
        blocks: The data of each strip or tile.
        compression: The tag Compression.
        tile: Width and height of a tile; None for strips, which have equal numbers of rows.
        extra: Further tags, of LONG values.
    """
    width, height = size
    offsets = []
    body = bytearray(8)
    for block in blocks:
        offsets.append(len(body))
        body += block
    tags: dict[int, tuple[int, ...]] = {
        256: (width,),
        257: (height,),
        258: bits,
        259: (compression,),
        262: (photometric,),
        277: (len(bits),),
    }
    if tile:
        tags |= {
            322: (tile[0],),
            323: (tile[1],),
            324: tuple(offsets),
            325: tuple(map(len, blocks)),
        }
    else:
        rows = -(-height // len(blocks))
        tags |= {273: tuple(offsets), 278: (rows,), 279: tuple(map(len, blocks))}
    tags |= extra or {}
    shorts = {258, 259, 262, 277, 284, 317, 338, 339}
    entries = b""
    for tag, values in sorted(tags.items()):
        code, kind = ("H", 3) if tag in shorts else ("I", 4)
        value = struct.pack(f"<{len(values)}{code}", *values)
        if len(value) > 4:
            value, at = struct.pack("<I", len(body)), value
            body += at
        entries += struct.pack("<HHI", tag, kind, len(values)) + value.ljust(4, b"\0")
    body += bytes(-len(body) % 2)
    body[:8] = b"II*\0" + struct.pack("<I", len(body))
    return bytes(body + struct.pack("<H", len(tags)) + entries + bytes(4))
