"""No accepted image costs more than 10 times a 12-megapixel JPEG, or 200 MiB.

Processor time is compared as a ratio, measured side by side in one process; see `measured.py`.
"""

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve_app.errors import ImageTooLarge, InvalidImage, RequestError
from serve_app.images.decoding import decode_image
from serve_app.images.limits import ImageLimits
from tests.hostile import encoded as make
from tests.hostile.measured import REFERENCE, preparer

LIMITS = ImageLimits()
UNDER = 1.3
SLACK = 0.3
"""Predictions may be exceeded by this factor and this many units."""
OVER = 5.0
OVER_SLACK = 0.6
"""And may exceed measurements by this much; content decides, which a header does not tell."""
MEMORY_SLACK_MIB = 16
"""What the allocator keeps between blocks."""


def _photo(kind: str, mode: str = "RGB", **options: object) -> Callable[[int, int], bytes]:
    return lambda width, height: make.saved(
        make.photo(width, height).convert(mode), kind, **options
    )


def _flat(kind: str, mode: str = "RGB", **options: object) -> Callable[[int, int], bytes]:
    return lambda width, height: make.saved(make.flat(width, height).convert(mode), kind, **options)


def _png(
    colour: int, depth: int, content: str = "flat", interlaced: bool = False
) -> Callable[[int, int], bytes]:
    return lambda width, height: make.png((width, height), colour, depth, content, interlaced)


def _translucent(kind: str, **options: object) -> Callable[[int, int], bytes]:
    def build(width: int, height: int) -> bytes:
        image = make.photo(width, height)
        image.putalpha(image.getchannel(0))
        return make.saved(image, kind, **options)

    return build


def _animated(kind: str, **options: object) -> Callable[[int, int], bytes]:
    def build(width: int, height: int) -> bytes:
        frames = [make.photo(width, height, seed) for seed in range(3)]
        return make.saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)

    return build


def _scans(width: int, height: int) -> bytes:
    return make.jpeg_with_scans(make.saved(make.flat(width, height), "JPEG", progressive=True), 80)


def _float_tiff(width: int, height: int) -> bytes:
    values = np.linspace(0, 1, width * height, dtype=np.float32).reshape(height, width)
    return make.saved(Image.fromarray(values), "TIFF", compression="tiff_lzw")


def _deep_tiff(width: int, height: int) -> bytes:
    strip = zlib.compress(bytes(width * height * 8), 1)
    return make.tiff((width, height), (16, 16, 16, 16), 2, [strip], 8, extra={338: (2,)})


def _planar_tiff(width: int, height: int) -> bytes:
    plane = bytes(width * height)
    return make.tiff((width, height), (8, 8, 8), 2, [plane] * 3, extra={284: (2,), 278: (height,)})


def _tiled_tiff(width: int, height: int) -> bytes:
    tiles = [zlib.compress(bytes(256 * 256 * 3), 1)] * (-(-width // 256) * -(-height // 256))
    return make.tiff((width, height), (8, 8, 8), 2, tiles, 8, tile=(256, 256))


def _bmp_rle(width: int, height: int) -> bytes:
    return make.bmp_rle((width, height), b"\1\5\0\0" * height)


IMAGES: dict[str, tuple[tuple[int, int], Callable[[int, int], bytes]]] = {
    "JPEG of a phone": ((8064, 6048), _flat("JPEG")),
    "JPEG photo": ((4000, 3000), _photo("JPEG", quality=95, subsampling=0)),
    "JPEG baseline, limit of pixels": ((7000, 7000), _flat("JPEG", "L", quality=5)),
    "JPEG long": ((32_000, 1_500), _flat("JPEG")),
    "JPEG of text": (
        (4000, 3000),
        lambda w, h: make.saved(make.text_page(w, h), "JPEG", quality=85),
    ),
    "JPEG progressive": ((4000, 2500), _photo("JPEG", progressive=True)),
    "JPEG progressive 4:4:4": (
        (2500, 2000),
        _photo("JPEG", progressive=True, subsampling=0, quality=95),
    ),
    "JPEG of 80 scans": ((5000, 4000), _scans),
    "JPEG CMYK": ((3000, 2000), _photo("JPEG", "CMYK")),
    "JPEG arithmetic": ((3000, 2000), lambda w, h: make.jpeg_arithmetic((w, h), b"")),
    "PNG photo": ((2500, 2000), _photo("PNG", compress_level=1)),
    "PNG black and white": ((6000, 4000), _png(0, 1)),
    "PNG grey 16": ((3500, 3000), _png(0, 16)),
    "PNG grey-alpha 16": ((3500, 3000), _png(4, 16)),
    "PNG RGBA 16": ((3000, 3000), _png(6, 16)),
    "PNG RGBA interlaced": ((3500, 3000), _png(6, 8, interlaced=True)),
    "PNG RGB noise": ((2000, 1500), _png(2, 8, "noise")),
    "PNG palette interlaced": ((5000, 4000), _png(3, 8, interlaced=True)),
    "PNG tall": ((500, 30_000), _png(2, 8)),
    "PNG animated": ((1200, 1000), _animated("PNG")),
    "WEBP lossy": ((3000, 2500), _photo("WEBP", method=0)),
    "WEBP lossless flat": ((3000, 2500), _flat("WEBP", lossless=True, quality=0, method=0)),
    "WEBP lossless": ((2000, 1500), _photo("WEBP", lossless=True, quality=0, method=0)),
    "WEBP alpha": ((2000, 1500), _translucent("WEBP", method=0)),
    "WEBP animated": ((1000, 800), _animated("WEBP", method=0)),
    "GIF": ((5000, 4000), _flat("GIF", "P")),
    "GIF animated": ((400, 300), _animated("GIF")),
    "BMP": ((4000, 3000), _flat("BMP")),
    "BMP run-length": ((1600, 1200), _bmp_rle),
    "TIFF float": ((3000, 2500), _float_tiff),
    "TIFF RGBA 16, one strip": ((3000, 2500), _deep_tiff),
    "TIFF planar": ((3000, 2000), _planar_tiff),
    "TIFF tiled": ((4000, 3500), _tiled_tiff),
    "TIFF JPEG": ((4000, 3000), _photo("TIFF", compression="jpeg")),
    "TIFF LAB": (
        (2500, 2000),
        lambda w, h: make.saved(Image.new("LAB", (w, h)), "TIFF", compression="tiff_lzw"),
    ),
    "TIFF group 4": ((5000, 4000), _photo("TIFF", "1", compression="group4")),
    "TIFF of pages": ((1000, 800), _animated("TIFF", compression="tiff_lzw")),
    "AVIF": ((3000, 2000), _photo("AVIF", speed=10)),
    "AVIF 4:4:4": ((2000, 1500), _photo("AVIF", speed=10, subsampling="4:4:4", quality=90)),
    "AVIF alpha": ((1500, 1000), _translucent("AVIF", speed=10)),
    "AVIF animated": ((800, 600), _animated("AVIF", speed=10)),
    "HEIF": ((1200, 900), _photo("HEIF", quality=60)),
    "HEIF grid": ((3000, 2000), lambda w, h: make.heif_grid(make.flat(w, h), quality=30)),
    "HEIF alpha": (
        (1500, 1000),
        lambda w, h: make.saved(make.flat(w, h).convert("RGBA"), "HEIF", quality=30),
    ),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Predicted and measured cost of all images in both qualities, by name."""
    folder = tmp_path_factory.mktemp("images")
    (folder / REFERENCE).write_bytes(make.saved(make.photo(4000, 3000), "JPEG", quality=90))
    for name, (size, build) in IMAGES.items():
        (folder / name).write_bytes(build(*size))
    command = [sys.executable, "-m", "tests.hostile.measured", str(folder)]
    lines = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        row = json.loads(line)
        found.setdefault(row["name"], []).append(row)
    return found


def _accepted(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        if (
            row["predicted"] <= LIMITS.max_cost
            and row["predicted_mib"] * 2**20 <= LIMITS.max_decode_bytes
        ):
            yield row


@pytest.mark.parametrize("name", IMAGES)
def test_prediction_is_near_what_is_measured(
    measured: dict[str, list[dict[str, Any]]], name: str
) -> None:
    """Neither time nor memory is far above what the header made one expect, nor the prediction far
    too high.
    """
    for row in measured[name]:
        assert row["measured"] <= UNDER * row["predicted"] + SLACK, row
        assert row["predicted"] <= OVER * row["measured"] + OVER_SLACK, row
        assert row["measured_mib"] <= row["predicted_mib"] + MEMORY_SLACK_MIB, row


@pytest.mark.parametrize("name", IMAGES)
def test_accepted_images_stay_within_the_limits(
    measured: dict[str, list[dict[str, Any]]], name: str
) -> None:
    """What is accepted in standard quality costs at most 10 units and 200 MiB; the same in high
    quality.
    """
    accepted = list(_accepted(measured[name]))
    assert accepted, "the image is refused in both qualities, so it shows nothing"
    for row in accepted:
        assert row["measured"] <= LIMITS.max_cost, row
        assert row["measured_mib"] <= 200, row


def test_reference_costs_one(measured: dict[str, list[dict[str, Any]]]) -> None:
    """The unit of cost is a 12-megapixel photo as JPEG.

    More is predicted, in case it has fine detail.
    """
    assert 1.0 <= measured[REFERENCE][0]["predicted"] <= 4.0
    assert measured[REFERENCE][0]["measured"] == pytest.approx(1.0, abs=0.4)


def _many_scans() -> bytes:
    data = make.jpeg_with_scans(make.saved(make.flat(70, 70), "JPEG", progressive=True), 20_000)
    at = data.index(b"\xff\xc2") + 5
    return data[:at] + struct.pack(">HH", 7000, 7000) + data[at + 4 :]


def _deep_png(colour: int, depth: int, interlaced: bool = False) -> bytes:
    return make.png_of((7000, 7000), colour, depth, zlib.compress(bytes(1_000_000)), interlaced)


ATTACKS: dict[str, Callable[[], bytes]] = {
    "progressive JPEG of 20,000 scans": _many_scans,
    "PNG of 1 × 49,000,000": lambda: make.png_of(
        (1, 49_000_000), 0, 1, zlib.compress(bytes(1_000_000))
    ),
    "WEBP of 40 bytes and 49 megapixels": lambda: bytes.fromhex(
        "5249464620000000574542505650384c140000002f57dbd506075081540820000a9afec78888fe07"
    ),
    "16-bit RGBA PNG": lambda: _deep_png(6, 16),
    "16-bit grey-alpha PNG": lambda: _deep_png(4, 16),
    "interlaced RGBA PNG": lambda: _deep_png(6, 8, interlaced=True),
    "PNG of 1,000,000 empty chunks": lambda: make.png(
        (10, 10), 2, 8, after=make.png_chunk(b"IDAT", b"") * 1_000_000
    ),
    "float TIFF": lambda: make.tiff((7000, 7000), (32,), 1, [b""], 5, extra={339: (3,)}),
    "TIFF of a huge tile": lambda: make.tiff(
        (10, 10), (8, 8, 8), 2, [b"x"], 8, tile=(65_536, 65_536)
    ),
    "TIFF of a huge strip": lambda: make.tiff(
        (32_768, 1_500), (16, 16, 16, 16), 2, [b"x"], 8, extra={338: (2,)}
    ),
    "TIFF of many samples": lambda: make.tiff(
        (7_000, 7_000), (8,) * 6, 2, [b"x"], 5, extra={338: (0, 0, 0)}
    ),
    "run-length BMP": lambda: make.bmp_rle((7000, 7000), b"\0\0" * 7000),
    "run-length BMP without progress": lambda: make.bmp_rle((100, 100), b"\0\2\0\0" * 1_500_000),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("views", [False, True])
def test_attacks_are_refused_before_decoding(
    name: str, views: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the prediction nor the preparation hands any of these to Pillow."""
    monkeypatch.setattr(Image, "open", _never)
    data = ATTACKS[name]()
    preparing = preparer(LIMITS)
    with pytest.raises(ImageTooLarge):
        preparing.cost_of(data, views)
    with pytest.raises(ImageTooLarge):
        (preparing.prepare_views if views else preparing.prepare)(data)
    with pytest.raises(ImageTooLarge):
        decode_image(data, LIMITS)


def _never(*args: object, **options: object) -> None:
    raise AssertionError("a decoder was called")


def _patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new)


def _two_frames() -> bytes:
    data = make.saved(make.flat(64, 48), "JPEG")
    at = data.index(b"\xff\xc0")
    frame = data[at : at + 19]
    return data[:at] + frame + data[at:]


def _two_headers() -> bytes:
    data = make.png((64, 48), 2, 8)
    return data[:33] + data[8:33] + data[33:]


def _ispe(data: bytes, size: tuple[int, int], claimed: tuple[int, int]) -> bytes:
    def box(sides: tuple[int, int]) -> bytes:
        return b"ispe" + bytes(4) + sides[0].to_bytes(4, "big") + sides[1].to_bytes(4, "big")

    return _patched(data, box(size), box(claimed))


DISGUISES: dict[str, Callable[[], bytes]] = {
    "JPEG of two frames": _two_frames,
    "PNG of two headers": _two_headers,
    "AVIF larger than its box": lambda: _ispe(
        make.saved(make.flat(640, 480), "AVIF", speed=10), (640, 480), (64, 48)
    ),
    "HEIF larger than its box": lambda: _ispe(
        make.saved(make.flat(640, 480), "HEIF"), (640, 480), (64, 48)
    ),
    "TIFF of two widths": lambda: _tiff_with_two_widths(),
    "WEBP smaller than its frame": lambda: _small_canvas(),
}


def _tiff_with_two_widths() -> bytes:
    data = make.tiff((64, 48), (8, 8, 8), 2, [bytes(64 * 48 * 3)])
    return _patched(
        data, (257).to_bytes(2, "little") + b"\4\0", (256).to_bytes(2, "little") + b"\4\0"
    )


def _small_canvas() -> bytes:
    data = bytearray(_translucent("WEBP")(640, 480))
    data[24:30] = (63).to_bytes(3, "little") + (47).to_bytes(3, "little")
    return bytes(data)


@pytest.mark.parametrize("name", DISGUISES)
def test_contradictions_are_refused(name: str) -> None:
    """A file from which our parser and a decoder could read two sizes is no image."""
    with pytest.raises((InvalidImage, RequestError)) as refused:
        decode_image(DISGUISES[name](), LIMITS)
    assert refused.type is InvalidImage or "UnsupportedImage" in refused.type.__name__


def test_what_pillow_sees_is_compared_with_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a decoder sees a larger image than our parser, it is refused before it is loaded."""
    data = make.saved(make.flat(64, 48), "JPEG")
    larger = Image.new("RGB", (65, 48))
    loaded: list[Image.Image] = []
    monkeypatch.setattr(Image, "open", lambda *args, **options: larger)
    monkeypatch.setattr(Image.Image, "load", lambda image: loaded.append(image))
    with pytest.raises(InvalidImage):
        decode_image(data, LIMITS)
    assert loaded == []
