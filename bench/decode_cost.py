"""Predicted and measured cost of decoding every format and mode, in both qualities.

Run with `python -m bench.decode_cost`. Processor time is compared with a 12-megapixel baseline JPEG
that is measured in the same run; memory is the growth of the process's peak. The constants of
`serve_app/images/cost.py` come from this table.
"""

import argparse
import dataclasses
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from serve_app.errors import ImageTooLarge
from serve_app.images.cost import Resizing
from serve_app.images.decoding_plan import plan_decoding
from serve_app.images.formats import FORMATS
from serve_app.images.header import ImageHeader
from serve_app.images.header_reading import read_header
from serve_app.images.limits import ImageLimits
from serve_app.siglip.prepare import ImagePreparer
from tests.hostile import encoded as make
from tests.hostile.measured import Unit, measure, preparer

MAX_IMAGE_BYTES = 20 * 2**20
"""The default of `limits.max_image_bytes`."""


@dataclasses.dataclass(frozen=True)
class Case:
    """An encoded image."""

    name: str
    data: bytes


def cases(mpx: float) -> Iterator[Case]:
    """Yield images of about some megapixels."""
    side = int((mpx * 1e6 / 12) ** 0.5)
    size = (4 * side, 3 * side)
    images = {"flat": make.flat(*size), "photo": make.photo(*size), "noise": make.noise(*size)}
    yield from _jpegs(images, size)
    yield from _pngs(size)
    yield from _tiffs(images, size)
    for content, image in images.items():
        yield from _modern(content, image, size)
    for content in ("flat", "photo"):
        yield from _heifs(content, (size[0] // 2, size[1] // 2))
    yield Case(
        "GIF transparent",
        make.saved(images["photo"].quantize(64, dither=Image.Dither.NONE), "GIF", transparency=3),
    )
    yield from _run_length_bmps(size)


def _modern(content: str, image: Image.Image, size: tuple[int, int]) -> Iterator[Case]:
    """Yield an image as WEBP, AVIF, GIF and BMP."""
    translucent = image.copy()
    translucent.putalpha(make.noise(*size, seed=2).getchannel(0))
    lossless = {"lossless": True, "quality": 0, "method": 0}
    yield Case(f"WEBP lossy {content}", make.saved(image, "WEBP", quality=90, method=0))
    yield Case(f"WEBP lossless {content}", make.saved(image, "WEBP", **lossless))
    yield Case(f"WEBP lossy alpha {content}", make.saved(translucent, "WEBP", quality=80, method=0))
    yield Case(f"WEBP lossless alpha {content}", make.saved(translucent, "WEBP", **lossless))
    yield Case(f"GIF {content}", make.saved(image.quantize(64, dither=Image.Dither.NONE), "GIF"))
    yield Case(f"BMP {content}", make.saved(image, "BMP"))
    for sampling in ("4:2:0", "4:4:4"):
        options = {"quality": 80, "speed": 10, "subsampling": sampling}
        yield Case(f"AVIF {sampling} {content}", make.saved(image, "AVIF", **options))
    yield Case(f"AVIF alpha {content}", make.saved(translucent, "AVIF", quality=80, speed=10))
    options = {"quality": 100, "speed": 10, "subsampling": "4:4:4"}
    yield Case(f"AVIF q100 {content}", make.saved(image, "AVIF", **options))


def _run_length_bmps(size: tuple[int, int]) -> Iterator[Case]:
    """Yield run-length encoded BMPs."""
    row = bytes((255, 5)) * (size[0] // 255) + bytes((size[0] % 255, 5, 0, 0))
    yield Case("BMP run-length", make.bmp_rle(size, row * size[1]))
    yield Case("BMP run-length, rows of one run", make.bmp_rle(size, b"\1\5\0\0" * size[1]))
    half = (size[0] // 2, size[1] // 2)
    runs_of_one = (b"\1\5" * half[0] + b"\0\0") * half[1]
    yield Case("BMP run-length, runs of one", make.bmp_rle(half, runs_of_one))
    yield Case("BMP run-length, 4 bits", make.bmp_rle(size, row * size[1], four_bits=True))
    yield Case("BMP run-length, no progress", make.bmp_rle((100, 100), b"\0\2\0\0" * 1_000_000))


def _jpegs(images: dict[str, Image.Image], size: tuple[int, int]) -> Iterator[Case]:
    for content, image in images.items():
        for mode in ("RGB", "L", "CMYK"):
            for progressive in (False, True):
                options = {"quality": 90, "progressive": progressive}
                name = f"JPEG {mode} {'progressive' if progressive else 'baseline'} {content}"
                yield Case(name, make.saved(image.convert(mode), "JPEG", **options))
        yield Case(
            f"JPEG 4:4:4 q100 {content}", make.saved(image, "JPEG", quality=100, subsampling=0)
        )
        yield Case(
            f"JPEG 4:4:4 q100 progressive {content}",
            make.saved(image, "JPEG", quality=100, subsampling=0, progressive=True),
        )
    exif = Image.Exif()
    exif[274] = 6
    yield Case("JPEG turned", make.saved(images["photo"], "JPEG", quality=90, exif=exif))
    progressive = make.saved(images["flat"], "JPEG", progressive=True)
    yield Case("JPEG 80 scans flat", make.jpeg_with_scans(progressive, 80))
    yield Case(
        "JPEG 80 scans flat 4:4:4",
        make.jpeg_with_scans(
            make.saved(images["flat"], "JPEG", progressive=True, subsampling=0), 80
        ),
    )
    rng = np.random.default_rng(3)
    for nbytes in (1000, 2_000_000):
        coded = rng.integers(0, 256, nbytes, np.uint8).tobytes()
        yield Case(f"JPEG arithmetic {nbytes} B", make.jpeg_arithmetic(size, coded))
        yield Case(
            f"JPEG arithmetic progressive {nbytes} B", make.jpeg_arithmetic(size, coded, True)
        )


def _pngs(size: tuple[int, int]) -> Iterator[Case]:
    kinds = [(0, 1), (0, 8), (0, 16), (2, 8), (2, 16), (3, 8), (4, 8), (4, 16), (6, 8), (6, 16)]
    for colour, depth in kinds:
        for content in ("flat", "noise"):
            for interlaced in (False, True):
                kind = f"{depth} bits{', interlaced' if interlaced else ''}"
                name = f"PNG type {colour}, {kind}, {content}"
                yield Case(name, make.png(size, colour, depth, content, interlaced))
    for content in ("flat", "noise"):
        key = make.png_chunk(b"tRNS", bytes(6))
        yield Case(
            f"PNG RGB with a transparent colour, {content}",
            make.png(size, 2, 8, content, extra=key),
        )
        yield Case(
            f"PNG RGB, no row filter, {content}", make.png(size, 2, 8, content, row_filter=0)
        )
    yield Case("PNG RGB photo", make.saved(make.photo(*size), "PNG", compress_level=1))
    yield Case(
        "PNG of 8,000 chunks",
        make.png((100, 100), 2, 8, after=make.png_chunk(b"teSt", b"") * 8_000),
    )


def _tiffs(images: dict[str, Image.Image], size: tuple[int, int]) -> Iterator[Case]:
    for content, image in images.items():
        for compression in (
            "raw",
            "tiff_lzw",
            "tiff_adobe_deflate",
            "packbits",
            "jpeg",
            "lzma",
            "zstd",
        ):
            try:
                yield Case(
                    f"TIFF {compression} {content}",
                    make.saved(image, "TIFF", compression=compression),
                )
            except OSError:  # this build of libtiff has no such encoder
                print(f"TIFF {compression}: not written")
        yield Case(
            f"TIFF RGBA deflate {content}",
            make.saved(image.convert("RGBA"), "TIFF", compression="tiff_adobe_deflate"),
        )
        yield Case(f"TIFF CMYK raw {content}", make.saved(image.convert("CMYK"), "TIFF"))
        yield Case(
            f"TIFF LAB raw {content}",
            make.saved(Image.frombytes("LAB", size, image.tobytes()), "TIFF"),
        )
        for name in ("group3", "group4"):
            yield Case(
                f"TIFF {name} {content}", make.saved(image.convert("1"), "TIFF", compression=name)
            )
    yield from _uncommon_tiffs(images["photo"].convert("L"), size)


def _uncommon_tiffs(grey: Image.Image, size: tuple[int, int]) -> Iterator[Case]:
    """Yield TIFFs with wide samples, and with strips and tiles of unusual sizes."""
    yield Case("TIFF float", make.saved(grey.convert("F"), "TIFF"))
    yield Case("TIFF float lzw", make.saved(grey.convert("F"), "TIFF", compression="tiff_lzw"))
    yield Case("TIFF 32 bits", make.saved(grey.convert("I"), "TIFF"))
    yield Case("TIFF 16 bits", make.saved(grey.convert("I;16"), "TIFF"))
    plane = bytes(size[0] * size[1])
    yield Case(
        "TIFF planar",
        make.tiff(size, (8, 8, 8), 2, [plane] * 3, extra={284: (2,), 278: (size[1],)}),
    )
    yield Case("TIFF RGB 16 bits", make.tiff(size, (16, 16, 16), 2, [plane * 6]))
    yield Case(
        "TIFF RGBA 16 bits", make.tiff(size, (16, 16, 16, 16), 2, [plane * 8], extra={338: (2,)})
    )
    packed = zlib_compress(bytes(size[0] * size[1] * 8))
    yield Case(
        "TIFF RGBA 16 bits, one deflate strip",
        make.tiff(size, (16, 16, 16, 16), 2, [packed], 8, extra={338: (2,)}),
    )
    strips = [zlib_compress(bytes(size[0] * 3))] * size[1]
    yield Case("TIFF of one-row strips", make.tiff(size, (8, 8, 8), 2, strips, 8))
    tiles = [bytes(16 * 16 * 3)] * (-(-size[0] // 16) * -(-size[1] // 16))
    yield Case("TIFF of 16×16 tiles", make.tiff(size, (8, 8, 8), 2, tiles, tile=(16, 16)))
    packed = zlib_compress(bytes(16 * 16 * 3))
    yield Case(
        "TIFF of 16×16 deflate tiles",
        make.tiff(size, (8, 8, 8), 2, [packed] * len(tiles), 8, tile=(16, 16)),
    )
    huge = zlib_compress(bytes(4096 * 4096 * 3))
    yield Case(
        "TIFF of one 4096×4096 tile for 64×64 pixels",
        make.tiff((64, 64), (8, 8, 8), 2, [huge], 8, tile=(4096, 4096)),
    )


def _heifs(content: str, size: tuple[int, int]) -> Iterator[Case]:
    image = make.flat(*size) if content == "flat" else make.photo(*size)
    for quality in (50, 90):
        yield Case(f"HEIF q{quality} {content}", make.saved(image, "HEIF", quality=quality))
    yield Case(f"HEIF 4:4:4 {content}", make.saved(image, "HEIF", quality=50, chroma="444"))
    yield Case(f"HEIF grid {content}", make.heif_grid(image, quality=50))
    translucent = image.copy()
    translucent.putalpha(128)
    yield Case(f"HEIF alpha {content}", make.saved(translucent, "HEIF", quality=50))


def zlib_compress(data: bytes) -> bytes:
    """Return zlib data at the fastest level."""
    return zlib.compress(data, 1)


def largest_mpx(header: ImageHeader, resizing: Resizing, draft_px: int) -> float:
    """Return the megapixels up to which similar images are accepted, in steps of 2 per cent."""
    largest = 0.0
    scale = 0.05
    while scale < 20:
        scaled = dataclasses.replace(
            header,
            width=int(header.width * scale**0.5),
            height=int(header.height * scale**0.5),
            raw_nbytes=int(header.raw_nbytes * scale),
            block_nbytes=int(header.block_nbytes * scale),
            coded_nbytes=int(header.coded_nbytes * scale),
        )
        try:
            plan_decoding(scaled, draft_px, resizing, ImageLimits())
        except ImageTooLarge:
            break
        if scaled.coded_nbytes > MAX_IMAGE_BYTES:
            break
        largest = scaled.area_px / 1e6
        scale *= 1.02
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mpx", type=float, default=4.0, help="size of the images in megapixels")
    parser.add_argument("--only", default="", help="part of the names of the images")
    args = parser.parse_args()
    preparing = preparer()
    unit = Unit(preparing, make.saved(make.photo(4000, 3000), "JPEG", quality=90))
    print(f"12-megapixel JPEG: {min(unit.measure() for _ in range(5)) * 1000:.1f} ms of CPU\n")
    print(
        "Cost is predicted / measured, in units of that JPEG; "
        "memory is predicted / measured in MiB.\n"
    )
    print("| image | MB | cost | MiB | cost, high | MiB, high | accepted to MP | to MP, high |")
    print("|---|---|---|---|---|---|---|---|")
    for case in cases(args.mpx):
        if args.only in case.name:
            print(row_of(preparing, unit, case), flush=True)


def row_of(preparing: ImagePreparer, unit: Unit, case: Case) -> str:
    """Return a row of the table."""
    cells = [case.name, f"{len(case.data) / 1e6:.2f}"]
    header = read_header(case.data, FORMATS)
    accepted = []
    for views in (False, True):
        found = measure(preparing, unit, case.data, views)
        cells.append(f"{found['predicted']:.1f} / {found['measured']:.1f}")
        cells.append(f"{found['predicted_mib']:.0f} / {found['measured_mib']:.0f}")
        resizing = Resizing(384, tiles=views, gap=2.0 if header.format == "JPEG" else None)
        accepted.append(f"{largest_mpx(header, resizing, 1536 if views else 384):.1f}")
    return f"| {' | '.join([*cells, *accepted])} |"


if __name__ == "__main__":
    main()
