"""Transparency is composited on white in every format and mode that can store it.

Expected pixels are computed here from the samples, by the rules of each format.
"""

import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.image_transforms import convert_to_rgb

from serve_app.images.decoding import decode_image
from serve_app.images.formats import FORMATS
from serve_app.images.header_reading import read_header
from serve_app.images.limits import ImageLimits
from tests.hostile import encoded as make

Pixels = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.uint16]

GREY = 0
RGB = 2
PALETTE = 3
KEYED = [(GREY, 1), (GREY, 2), (GREY, 4), (GREY, 8), (GREY, 16), (RGB, 8), (RGB, 16)]
"""Colour types and depths of PNGs in which a tRNS chunk names one transparent colour."""


def decoded(data: bytes) -> Pixels:
    """Return the pixels of an encoded image as (H, W, 3)."""
    return np.asarray(decode_image(data, ImageLimits()))


def packed_rows(samples: Samples, depth: int) -> bytes:
    """Return (H, W, C) samples as unfiltered rows of a PNG."""
    rows = []
    for row in samples:
        if depth == 16:
            body = row.astype(">u2").tobytes()
        elif depth == 8:
            body = row.astype(np.uint8).tobytes()
        else:
            bits = "".join(f"{sample:0{depth}b}" for sample in row.ravel())
            bits += "0" * (-len(bits) % 8)
            body = int(bits, 2).to_bytes(len(bits) // 8, "big")
        rows.append(b"\0" + body)
    return b"".join(rows)


def png_of_samples(
    samples: Samples, colour: int, depth: int, chunks: bytes, interlaced: bool = False
) -> bytes:
    """Return a PNG of (H, W, C) samples with chunks before its image data."""
    rows = packed_rows(samples, depth)
    if interlaced:
        passes = [samples[y::dy, x::dx] for y, x, dy, dx in make.ADAM7]
        rows = b"".join(packed_rows(part, depth) for part in passes if part.size)
    size = (samples.shape[1], samples.shape[0])
    return make.png_of(size, colour, depth, zlib.compress(rows), interlaced, chunks)


def eight_bits(samples: Samples, depth: int) -> Pixels:
    """Return samples as 0 to 255: scaled, or for 16-bit RGB the high byte, as Pillow decodes it."""
    if depth < 8:
        return (samples * (255 // ((1 << depth) - 1))).astype(np.uint8)
    if depth == 8:
        return samples.astype(np.uint8)
    if samples.shape[2] == 3:
        return (samples >> 8).astype(np.uint8)
    return np.rint(samples / 257).astype(np.uint8)


@given(data=st.data(), kind=st.sampled_from(KEYED), interlaced=st.booleans())
def test_the_transparent_colour_of_a_png_is_white(
    data: st.DataObject, kind: tuple[int, int], interlaced: bool
) -> None:
    """Pixels that equal the chunk's colour in all bits are white, and all others are untouched."""
    colour, depth = kind
    channels = 1 if colour == GREY else 3
    # Few values, so that colours are often equal and often differ in one byte only.
    values = [value & ((1 << depth) - 1) for value in (0, 1, 0x1234, 0x1235, 0x1334, 0xFFFF)]
    pixel = st.tuples(*[st.sampled_from(values)] * channels)
    rows = data.draw(st.lists(st.lists(pixel, min_size=9, max_size=9), min_size=1, max_size=9))
    key = data.draw(pixel)
    samples = np.array(rows, np.uint16).reshape(len(rows), 9, channels)

    chunk = make.png_chunk(b"tRNS", struct.pack(f">{channels}H", *key))
    pixels = decoded(png_of_samples(samples, colour, depth, chunk, interlaced))

    expected = np.broadcast_to(eight_bits(samples, depth), pixels.shape).copy()
    expected[(samples == np.array(key)).all(axis=2)] = 255
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(("colour", "depth"), [kind for kind in KEYED if kind[1] < 16])
def test_only_the_lowest_bits_of_the_transparent_colour_count(colour: int, depth: int) -> None:
    """The specification has decoders ignore the others."""
    channels = 1 if colour == GREY else 3
    chunk = make.png_chunk(b"tRNS", struct.pack(f">{channels}H", *[0xFF00] * channels))
    samples = np.zeros((2, 2, channels), np.uint16)
    assert (decoded(png_of_samples(samples, colour, depth, chunk)) == 255).all()


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_each_colour_of_a_palette_has_its_own_transparency(depth: int) -> None:
    """Colours beyond the end of the chunk are opaque."""
    palette = make.png_chunk(b"PLTE", bytes((10, 20, 30, 40, 50, 60)))
    samples = np.array([[[0], [1]]], np.uint16)
    for chunk, first in (
        (b"\0", [255, 255, 255]),
        (b"\x80", [132, 137, 142]),
        (b"\xff", [10, 20, 30]),
    ):
        data = png_of_samples(samples, PALETTE, depth, palette + make.png_chunk(b"tRNS", chunk))
        np.testing.assert_allclose(decoded(data)[0].astype(int), [first, [40, 50, 60]], atol=1)


def translucent(mode: str) -> Image.Image:
    """Return a gradient whose transparency grows downwards."""
    levels = np.linspace(0, 255, 32).round().astype(np.uint8)
    grey = Image.fromarray(np.tile(levels, (32, 1)))
    alpha = Image.fromarray(np.tile(levels[:, None], (1, 32)))
    image = grey
    if mode == "RGBA":
        image = Image.merge("RGB", (grey, grey.transpose(Image.Transpose.ROTATE_180), grey))
    image.putalpha(alpha)
    return image


LOSSLESS: dict[str, tuple[str, str, dict[str, object]]] = {
    "PNG grey": ("PNG", "LA", {}),
    "PNG colour": ("PNG", "RGBA", {}),
    "WEBP": ("WEBP", "RGBA", {"lossless": True, "exact": True}),
    "TIFF grey": ("TIFF", "LA", {}),
    "TIFF colour": ("TIFF", "RGBA", {"compression": "tiff_lzw"}),
    "animated WEBP": (
        "WEBP",
        "RGBA",
        {
            "lossless": True,
            "exact": True,
            "save_all": True,
            "append_images": [Image.new("RGBA", (32, 32))],
        },
    ),
    "animated PNG": (
        "PNG",
        "RGBA",
        {"save_all": True, "append_images": [Image.new("RGBA", (32, 32))]},
    ),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_alpha_channels_agree_with_transformers(name: str) -> None:
    """Transformers composites on white, too."""
    kind, mode, options = LOSSLESS[name]
    image = translucent(mode)
    expected = convert_to_rgb(image, return_numpy=True)
    np.testing.assert_array_equal(decoded(make.saved(image, kind, **options)), expected)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
        ("HEIF", {"quality": -1, "chroma": "444"}),
    ],
)
def test_alpha_of_lossy_formats_is_near_transformers(kind: str, options: dict[str, object]) -> None:
    """AVIF and HEIF store the alpha channel as an image of its own."""
    image = translucent("RGBA")
    expected = convert_to_rgb(image, return_numpy=True)
    np.testing.assert_allclose(
        decoded(make.saved(image, kind, **options)).astype(int), expected, atol=8
    )


TIFFS: dict[str, tuple[tuple[int, ...], int, int, bytes, list[int]]] = {
    "grey, premultiplied": ((8, 8), 1, 1, bytes((50, 128)), [177, 177, 177]),
    "grey": ((8, 8), 1, 2, bytes((50, 128)), [152, 152, 152]),
    "RGB, premultiplied": ((8,) * 4, 2, 1, bytes((50, 0, 0, 128)), [177, 127, 127]),
    "RGB": ((8,) * 4, 2, 2, bytes((50, 0, 0, 128)), [152, 127, 127]),
    "RGB 16, premultiplied": (
        (16,) * 4,
        2,
        1,
        struct.pack("<4H", 50 << 8, 0, 0, 128 << 8),
        [177, 127, 127],
    ),
    "RGB 16": ((16,) * 4, 2, 2, struct.pack("<4H", 50 << 8, 0, 0, 128 << 8), [152, 127, 127]),
    "RGB, not alpha": ((8,) * 4, 2, 0, bytes((50, 0, 0, 128)), [50, 0, 0]),
}


@pytest.mark.parametrize("name", TIFFS)
def test_both_kinds_of_alpha_in_a_tiff_are_composited(name: str) -> None:
    """The tag ExtraSamples says 1 for premultiplied, 2 for separate and 0 for something else."""
    bits, photometric, extra, pixel, expected = TIFFS[name]
    data = make.tiff((4, 4), bits, photometric, [pixel * 16], extra={338: (extra,)})
    np.testing.assert_allclose(decoded(data)[0, 0].astype(int), expected, atol=1)


def test_palette_with_alpha_in_a_tiff_is_composited() -> None:
    """A palette and a separate alpha channel."""
    palette = tuple(range(0, 256 * 257, 257)) * 3
    data = make.tiff((4, 4), (8, 8), 3, [bytes((7, 128)) * 16], extra={338: (2,), 320: palette})
    np.testing.assert_allclose(decoded(data)[0, 0].astype(int), [131] * 3, atol=1)


def test_the_transparent_colour_of_a_gif_is_white() -> None:
    """The first frame's."""
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    pixels = decoded(make.saved(image, "GIF", transparency=1))
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[3, 3].tolist() == [255, 255, 255]


def test_a_large_image_is_composited_in_strips() -> None:
    """More than one strip of rows, with the transparent colour in the last row only."""
    samples = np.zeros((1200, 900, 3), np.uint16)
    samples[-1] = 0x1234
    chunk = make.png_chunk(b"tRNS", struct.pack(">3H", *[0x1234] * 3))
    pixels = decoded(png_of_samples(samples, RGB, 16, chunk))
    assert (pixels[-1] == 255).all()
    assert (pixels[:-1] == 0).all()


def test_pixels_that_are_decoded_twice_are_predicted_to_cost_so() -> None:
    """16-bit RGB with a transparent colour needs the low bytes as well."""
    chunk = make.png_chunk(b"tRNS", bytes(6))
    plain, keyed = (
        read_header(make.png((64, 48), RGB, 16, extra=extra), FORMATS) for extra in (b"", chunk)
    )
    assert not plain.decoded_twice
    assert keyed.decoded_twice
