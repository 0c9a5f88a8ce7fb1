"""Some four hundred small hostile pictures, made anew each time and always the same: truncated,
flipped, bombs, absurd sizes, wrong names, every mode. None is larger than 300 kB.
"""

import functools
import gzip
import io
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageDraw

from serve_app.images.formats import readable_formats

MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "I;16",
    "F",
)
TRUNCATIONS = 16
FLIPS = 12
HEADERS = 6


@dataclass(frozen=True)
class Hostile:
    """A picture that somebody may send.

    Attributes:
        name: What it is.
        data: Its bytes.
        statuses: With which of these it must be answered.
    """

    name: str
    data: bytes
    statuses: tuple[int, ...] = (200, 413, 415, 422)


@functools.cache
def corpus() -> tuple[Hostile, ...]:
    """Return all of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of formats that it will not write for ever
        return (
            *_whole(),
            *_broken(),
            *_modes(),
            *_bombs(),
            *_sizes(),
            *_other_formats(),
            *_polyglots(),
            *_metadata(),
            *_small(),
        )


def formats() -> tuple[str, ...]:
    """Return the formats that can be written and read here."""
    return readable_formats(("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"))


def _picture(width: int = 96, height: int = 64) -> Image.Image:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8))
    ImageDraw.Draw(image).ellipse((8, 8, 56, 56), fill=(200, 30, 30))
    return image


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return a picture's bytes."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _whole() -> Iterator[Hostile]:
    for kind in formats():
        yield Hostile(f"whole {kind}", saved(_picture(), kind), (200,))
    for options in ({"progressive": True}, {"subsampling": 0}, {"quality": 1}, {"optimize": True}):
        yield Hostile(f"JPEG {options}", saved(_picture(), "JPEG", **options), (200,))
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        frames = [_picture().rotate(n) for n in range(12)]
        yield Hostile(
            f"animated {kind}",
            saved(frames[0], kind, save_all=True, append_images=frames[1:]),
            (200,),
        )


def _broken() -> Iterator[Hostile]:
    chance = random.Random(2)
    for kind in formats():
        data = saved(_picture(), kind)
        for part in range(TRUNCATIONS):
            yield Hostile(
                f"{kind} cut at {part}/{TRUNCATIONS}",
                data[: len(data) * part // TRUNCATIONS],
                (200, 400, 415, 422) if part else (400,),
            )
        for n in range(FLIPS):
            flipped = bytearray(data)
            for _ in range(1 + n):
                flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
            yield Hostile(f"{kind} with {1 + n} bits flipped", bytes(flipped))
        for n in range(HEADERS):
            header = bytearray(data)
            for at in range(4, min(48, len(header))):
                if chance.random() < 0.3:
                    header[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
            yield Hostile(f"{kind} with a damaged header, {n}", bytes(header))
        yield Hostile(
            f"{kind} with rubbish behind it",
            data + bytes(5000),
            (200,) if kind not in ("AVIF", "HEIF") else (200, 415, 422),
        )


def _modes() -> Iterator[Hostile]:
    for mode in MODES:
        image = (
            Image.new(mode, (40, 30))
            if mode in ("La", "PA", "RGBa", "HSV", "LAB", "I;16", "F")
            else _picture(40, 30).convert(mode)
        )
        for kind in formats():
            try:
                data = saved(image, kind)
            except Exception:  # the format has no such mode
                continue
            yield Hostile(f"{mode} as {kind}", data, (200,))
    palette = _picture(40, 30).quantize(7)
    yield Hostile(
        "palette with a transparent colour", saved(palette, "PNG", transparency=3), (200,)
    )
    yield Hostile(
        "palette with transparencies",
        saved(palette, "PNG", transparency=bytes(range(0, 70, 10))),
        (200,),
    )
    yield Hostile(
        "grey with a transparent level",
        saved(_picture(40, 30).convert("L"), "PNG", transparency=7),
        (200,),
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int,
    height: int,
    rows: bytes = b"",
    depth: int = 8,
    colour: int = 2,
    extra: bytes = b"",
    interlace: int = 0,
) -> bytes:
    """Return a PNG that says it has some size, whatever is in it."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + extra
        + _chunk(b"IDAT", zlib.compress(rows, 9))
        + _chunk(b"IEND", b"")
    )


def _bombs() -> Iterator[Hostile]:
    zeros = bytes(50_000_000)
    packed = zlib.compress(zeros, 9)
    small = b"".join(b"\0" + bytes(30) for _ in range(10))
    yield Hostile("PNG of 60,000 x 60,000", png(60_000, 60_000, bytes(100_000)), (422,))
    yield Hostile("PNG just over the limit", png(7_072, 7_072, bytes(1000)), (422,))
    yield Hostile("PNG with 50 MB of zeros behind 10 x 10", png(10, 10, zeros))
    yield Hostile(
        "PNG with a text of 50 MB", png(10, 10, small, extra=_chunk(b"zTXt", b"k\0\0" + packed))
    )
    yield Hostile(
        "PNG with an international text of 50 MB",
        png(10, 10, small, extra=_chunk(b"iTXt", b"k\0\1\0\0\0" + packed)),
    )
    yield Hostile(
        "PNG with a colour profile of 50 MB",
        png(10, 10, small, extra=_chunk(b"iCCP", b"p\0\0" + packed)),
    )
    yield Hostile(
        "PNG with 20,000 empty chunks", png(10, 10, small, extra=_chunk(b"teST", b"") * 20_000)
    )
    yield Hostile(
        "PNG whose chunk says 2 GB",
        png(10, 10, small, extra=struct.pack(">I", 0x7FFFFFFF) + b"teST"),
    )
    yield Hostile(
        "GIF of 65,535 x 65,535",
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0xF0, 0, 0) + bytes(6) + b",",
        (415, 422),
    )
    yield Hostile("GIF with 3,000 frames", _many_frames("GIF", 3_000), (200,))
    yield Hostile("APNG with 500 frames", _many_frames("PNG", 500), (200,))
    yield Hostile(
        "BMP of 100,000 x 100,000",
        b"BM"
        + struct.pack(
            "<IHHIIiiHHIIiiII", 200, 0, 0, 54, 40, 100_000, 100_000, 1, 24, 0, 0, 0, 0, 0, 0
        ),
    )
    yield Hostile(
        "BMP of -2^31 rows",
        b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 200, 0, 0, 54, 40, 10, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0),
    )
    yield Hostile(
        "TIFF of 1,000,000 x 1,000,000", _tiff({256: 1_000_000, 257: 1_000_000}), (415, 422)
    )
    yield Hostile("TIFF whose directory leads to itself", _tiff({256: 10, 257: 10}, following=8))
    yield Hostile(
        "TIFF with a count of 2^32-1", _tiff({256: 10, 257: 10, 273: 8}, count=0xFFFFFFFF)
    )
    yield Hostile(
        "WebP with a canvas of 16,384 x 16,384",
        b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0" + b"VP8 \0\0\0\0",
    )
    yield Hostile("JPEG of 65,535 x 65,535", _jpeg_of(65_535, 65_535), (415, 422))
    yield Hostile("JPEG of 0 x 0", _jpeg_of(0, 0), (415, 422))
    yield Hostile("JPEG with 2,000 scans", _scans(2_000))
    yield Hostile(
        "JPEG of one colour, 7,000 x 7,000",
        saved(Image.new("L", (7_000, 7_000)), "JPEG", quality=5),
        (200, 413),
    )
    yield Hostile("gzip of 50 MB", gzip.compress(zeros), (415,))


def _many_frames(kind: str, count: int) -> bytes:
    frames = [Image.new("P", (2, 2), n % 2) for n in range(2)] * (count // 2)
    for n, frame in enumerate(frames):
        frame.putpalette([0, 0, 0, 255, 255, 255])
        frame.info["duration"] = n
    return saved(
        frames[0], kind, save_all=True, append_images=frames[1:], duration=list(range(1, count + 1))
    )


def _tiff(tags: dict[int, int], following: int = 0, count: int = 1) -> bytes:
    base = {258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 100} | tags
    entries = b"".join(
        struct.pack("<HHII", tag, 4, count if tag == 273 else 1, value)
        for tag, value in sorted(base.items())
    )
    return (
        b"II*\0"
        + struct.pack("<I", 8)
        + struct.pack("<H", len(base))
        + entries
        + struct.pack("<I", following)
        + bytes(100)
    )


def _jpeg_of(width: int, height: int) -> bytes:
    """Return a JPEG whose frame header says another size."""
    data = bytearray(saved(_picture(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _scans(count: int) -> bytes:
    """Return a progressive JPEG whose first scan comes again and again."""
    data = saved(_picture(800, 600), "JPEG", progressive=True, quality=10)
    start = data.index(b"\xff\xda")
    end = (
        data.index(b"\xff\xc4", start)
        if b"\xff\xc4" in data[start:]
        else data.index(b"\xff\xda", start + 2)
    )
    first = data[start:end][:120]
    return data[:end] + first * count + data[end:]


def _sizes() -> Iterator[Hostile]:
    for width, height in [
        (1, 1),
        (32_000, 1),
        (1, 32_000),
        (2, 16_000),
        (3, 3),
        (1, 7),
        (4_000, 2),
    ]:
        for kind in ("PNG", "TIFF", "BMP"):
            yield Hostile(
                f"{kind} of {width} x {height}",
                saved(Image.new("RGB", (width, height), "red"), kind),
                (200,),
            )
    for width, height in [
        (33_000, 1),
        (1, 33_000),
        (65_000, 1),
        (1, 65_000),
    ]:  # longer than the largest side
        for kind in ("PNG", "TIFF", "BMP"):
            yield Hostile(
                f"{kind} of {width} x {height}",
                saved(Image.new("RGB", (width, height), "red"), kind),
                (422,),
            )
    for width, height in [
        (0, 0),
        (0, 10),
        (10, 0),
        (0x7FFFFFFF, 1),
        (1, 0x7FFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
    ]:
        yield Hostile(
            f"PNG that says {width} x {height}", png(width, height, bytes(100)), (415, 422)
        )
    for depth, colour in [
        (16, 0),
        (16, 2),
        (16, 4),
        (16, 6),
        (1, 0),
        (2, 0),
        (4, 0),
        (3, 2),
        (8, 5),
        (8, 7),
        (64, 2),
    ]:
        yield Hostile(
            f"PNG of depth {depth}, colour type {colour}", png(4, 4, bytes(400), depth, colour)
        )
    yield Hostile("interlaced PNG", png(8, 8, bytes(400), interlace=1))
    yield Hostile("palette PNG without a palette", png(8, 8, bytes(72), colour=3))


def _other_formats() -> Iterator[Hostile]:
    """Pictures of formats that are not read, and what is no picture."""
    for kind in (
        "PPM",
        "PCX",
        "TGA",
        "ICO",
        "ICNS",
        "DDS",
        "SGI",
        "XBM",
        "IM",
        "MSP",
        "JPEG2000",
        "DIB",
        "EPS",
        "PDF",
        "BLP",
        "QOI",
    ):
        image = _picture(64, 64).convert(
            "1" if kind in ("XBM", "MSP") else "P" if kind == "BLP" else "RGB"
        )
        try:
            data = saved(image, kind)
        except (OSError, KeyError, ValueError):  # not written by this build of Pillow
            continue
        yield Hostile(f"a {kind}", data, (415,) if kind != "ICO" else (415, 200))
    texts = {
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "HTML": b"<!doctype html><script>alert(1)</script>",
        "PostScript": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file\n"
        ),
        "PDF": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n",
        "XML bomb": b'<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]><svg>&c;</svg>',
        "ELF": b"\x7fELF" + bytes(100),
        "FITS": b"SIMPLE  =                    T" + bytes(2880),
        "PSD": b"8BPS\0\1" + bytes(100),
        "MP4": b"\0\0\0\x18ftypisom" + bytes(100),
        "QuickTime": b"\0\0\0\x14ftypqt  " + bytes(100),
        "pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix\x94.",
        "text": b"this is not a picture",
        "shell": b"#!/bin/sh\nrm -rf /\n",
        "MVG": (
            b"push graphic-context\nviewbox 0 0 640 480\n"
            b"fill 'url(https://example.com/\"|ls \"-la)'\n"
        ),
        "WMF": b"\xd7\xcd\xc6\x9a" + bytes(100),
        "zeros": bytes(1000),
        "ones": b"\xff" * 1000,
    }
    for name, data in texts.items():
        yield Hostile(name, data, (415,))


def _polyglots() -> Iterator[Hostile]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "x" * 1000)
    for kind in ("JPEG", "PNG", "GIF"):
        data = saved(_picture(), kind)
        yield Hostile(f"{kind} that is a ZIP too", data + archive.getvalue(), (200,))
        yield Hostile(f"{kind} with HTML behind it", data + b"<script>alert(1)</script>", (200,))
        yield Hostile(f"ZIP before a {kind}", archive.getvalue() + data, (415,))
    yield Hostile("GIF header before JavaScript", b"GIF89a=1;alert(1);//" + bytes(100))
    yield Hostile(
        "JPEG header before rubbish",
        b"\xff\xd8\xff\xe0" + random.Random(3).randbytes(1000),
        (415, 422),
    )
    yield Hostile(
        "PNG signature before a JPEG", b"\x89PNG\r\n\x1a\n" + saved(_picture(), "JPEG"), (415, 422)
    )
    yield Hostile("BM before text", b"BM" + b"not a bitmap at all " * 20, (415, 422))


def _metadata() -> Iterator[Hostile]:
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        for orientation in (1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 65535):
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = orientation
            yield Hostile(
                f"{kind} of orientation {orientation}",
                saved(_picture(40, 20), kind, exif=exif),
                (200,),
            )
    for name, exif_bytes in {
        "60 kB": b"Exif\0\0II*\0\x08\0\0\0" + bytes(60_000),
        "rubbish": b"Exif\0\0" + random.Random(4).randbytes(500),
        "nothing": b"Exif\0\0",
        "half a header": b"Exif\0\0MM\0",
        "a directory that leads to itself": b"Exif\0\0II*\0\x08\0\0\0\0\0\x08\0\0\0",
        "a count of 2^32-1": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\0\0\0\0",
    }.items():
        yield Hostile(
            f"JPEG with EXIF of {name}", saved(_picture(), "JPEG", exif=exif_bytes), (200, 422)
        )
    yield Hostile(
        "JPEG with a broken colour profile",
        saved(_picture(), "JPEG", icc_profile=b"x" * 3000),
        (200,),
    )
    yield Hostile(
        "JPEG with 60 kB of comment", saved(_picture(), "JPEG", comment=b"c" * 60_000), (200,)
    )
    yield Hostile(
        "PNG with a broken colour profile",
        saved(_picture(), "PNG", icc_profile=b"\0" * 3000),
        (200,),
    )


def _small() -> Iterator[Hostile]:
    for data in (
        b"\0",
        b"\xff",
        b"\xff\xd8",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"GIF8",
        b"GIF89a",
        b"BM",
        b"II*\0",
        b"MM\0*",
        b"RIFF",
        b"RIFF\0\0\0\0WEBP",
    ):
        yield Hostile(f"only {data!r}", data, (415, 422))
    yield Hostile("only the head of an AVIF", b"\0\0\0\x20ftypavif" + bytes(20), (415, 422))
    yield Hostile("only the head of a HEIC", b"\0\0\0\x18ftypheic" + bytes(16), (415, 422))
