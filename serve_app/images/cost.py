"""Predicts the cost of decoding, converting and resizing an image from its header.

Every constant was fitted with `python -m bench.decode_cost`; bench/LOG.md of 2026-11-27 has the
conditions and the table. The constants are conservative: they come from the most expensive content
that was found for each coding, so most images cost less than predicted.

Not here: reading headers (`header_reading.py`), how much smaller JPEGs are decoded
(`decoding_plan.py`).
"""

from dataclasses import dataclass

from serve_app.errors import ImageTooLarge
from serve_app.images.header import ImageHeader
from serve_app.images.limits import ImageLimits

MEGA = 1_000_000
MEBI = 1 << 20


@dataclass(frozen=True, slots=True)
class DecodeCost:
    """The predicted cost of an image.

    Attributes:
        cost: CPU time, in units of the CPU time of a 12-megapixel baseline JPEG.
        nbytes: Peak memory in bytes, without the encoded image.
        second_decode: The part of `cost` that only images with fine detail have.
    """

    cost: float
    nbytes: int
    second_decode: float = 0.0

    @property
    def usual(self) -> float:
        """Cost of most images with this header."""
        return self.cost - self.second_decode


@dataclass(frozen=True, slots=True)
class Resizing:
    """How a decoded image is resized.

    Attributes:
        output_px: Side in pixels of the square, or of a square of equal area, that it is resized
            to.
        tiles: Whether tiles of the image are resized as well.
        support: Half-width of the filter: 1 bilinear, 2 bicubic, 3 Lanczos.
        gap: The `reducing_gap` of `preprocess.resize_square`; None for an exact resize, which
            copies tiles. A plan for a JPEG replaces it by its own, unless it is None.
    """

    output_px: int
    tiles: bool = False
    support: float = 2.0
    gap: float | None = None


@dataclass(frozen=True, slots=True)
class _Rates:
    """Cost of one coding, in units of `DecodeCost.cost`.

    Attributes:
        per_mpx: Cost per megapixel of the stored image.
        per_raw_mb: Cost per megabyte of unpacked samples.
        per_coded_mb: Cost per megabyte of the encoded image.
    """

    per_mpx: float = 0.0
    per_raw_mb: float = 0.0
    per_coded_mb: float = 0.0


_RATES: dict[tuple[str, str], _Rates] = {
    ("JPEG", "baseline"): _Rates(per_raw_mb=0.006, per_coded_mb=0.16),
    ("JPEG", "multiscan"): _Rates(per_raw_mb=0.055, per_coded_mb=0.2),
    ("JPEG", "progressive"): _Rates(per_raw_mb=0.055, per_coded_mb=0.55),
    ("JPEG", "arithmetic"): _Rates(per_raw_mb=0.055, per_coded_mb=2.0),
    ("PNG", ""): _Rates(per_mpx=0.02, per_raw_mb=0.07, per_coded_mb=0.16),
    ("WEBP", "lossy"): _Rates(per_mpx=0.22, per_coded_mb=1.0),
    ("WEBP", "lossless"): _Rates(per_mpx=0.3, per_coded_mb=0.2),
    ("GIF", ""): _Rates(per_mpx=0.03, per_coded_mb=0.2),
    ("BMP", "raw"): _Rates(per_mpx=0.03),
    ("BMP", "run-length"): _Rates(per_mpx=3.0, per_coded_mb=3.5),
    ("TIFF", "raw"): _Rates(per_raw_mb=0.04),
    ("TIFF", "fax"): _Rates(per_mpx=0.13, per_coded_mb=0.25),
    ("TIFF", "lzw"): _Rates(per_raw_mb=0.03, per_coded_mb=0.06),
    ("TIFF", "jpeg"): _Rates(per_raw_mb=0.03, per_coded_mb=0.22),
    ("TIFF", "deflate"): _Rates(per_raw_mb=0.025, per_coded_mb=0.15),
    ("TIFF", "packbits"): _Rates(per_raw_mb=0.03, per_coded_mb=0.03),
    ("TIFF", "lzma"): _Rates(per_raw_mb=0.06, per_coded_mb=0.45),
    ("TIFF", "zstd"): _Rates(per_raw_mb=0.025, per_coded_mb=0.08),
    ("AVIF", ""): _Rates(per_raw_mb=0.22, per_coded_mb=1.25),
    ("HEIF", ""): _Rates(per_raw_mb=0.15, per_coded_mb=2.2),
}

_BASE_COST = 0.04
_PER_DECODED_MPX = 0.04
_PER_SCAN_MB = 0.0015
_PER_PIECE = 0.00006
_PER_INTERLACED_MPX = 0.08
_CONVERSIONS = {"": 0.0, "grey": 0.05, "cmyk": 0.25, "lab": 1.1, "deep": 0.16, "alpha": 0.18}
"""Cost per megapixel of each conversion."""
_PER_TURNED_MPX = 0.05
_PER_RESIZED_MPX = 0.13
_PER_REDUCED_MPX = 0.045
_TILE_OVERLAP = 1.45
"""Total area of all tiles relative to the image's. Source: `tiles.OVERLAP`, which gives 1.24 for
2 × 2 tiles and 1.38 for eight in a row."""

_LARGEST_TILE = 0.56
"""Area of the largest tile relative to the image's: one of two tiles of a 2.4:1 image."""
_MAX_VIEWS = 9
"""Maximum number of resized images: the whole image and eight tiles."""
_STRIP_NBYTES = 16 * MEBI
"""Size of the working copies of a strip in `conversion.py`."""
_FRAME_NBYTES = 1 * MEBI
"""Size of a decoder's buffers that do not depend on the image."""


def predict(header: ImageHeader, scale: int, resizing: Resizing | None) -> DecodeCost:
    """Predict the cost of an image.

    Args:
        header: The image's header.
        scale: Whole factor by which a JPEG is decoded smaller; 1 for other formats.
        resizing: How the image is resized; None if it is only decoded and converted.
    """
    width = -(-header.width // scale)
    height = -(-header.height // scale)
    decoded_mpx = width * height / MEGA
    cost = _decoding(header) + _PER_DECODED_MPX * decoded_mpx + _conversion(header) * decoded_mpx
    if resizing is not None:
        cost += _resize(width, height, resizing)
    return DecodeCost(cost, _memory(header, width, height, resizing))


def check(header: ImageHeader, cost: DecodeCost, limits: ImageLimits) -> None:
    """Refuse an image that is too large or too expensive.

    Raises:
        ImageTooLarge: The image exceeds a limit, which the message names.
    """
    size = f"The image has {header.width}×{header.height} pixels"
    if max(header.width, header.height) > limits.max_side_px:
        raise ImageTooLarge(
            f"{size}; at most {limits.max_side_px:,} on each side are supported. Crop it, or send "
            "it smaller."
        )
    if header.area_px > limits.max_pixels:
        raise ImageTooLarge(
            f"{size}; at most {limits.max_pixels:,} are supported. Send it smaller."
        )

    kind = " ".join(part for part in (header.variant, header.format) if part)
    if cost.cost > limits.max_cost:
        raise ImageTooLarge(
            f"{size}, and as {kind} it would take {cost.cost:.1f} times the processor time of a "
            f"12-megapixel JPEG; the limit is {limits.max_cost:g}. Send it smaller, or as a JPEG."
        )
    if cost.nbytes > limits.max_decode_bytes:
        raise ImageTooLarge(
            f"{size}, and as {kind} it would take {cost.nbytes / MEBI:,.0f} MiB to decode; the "
            f"limit is {limits.max_decode_bytes / MEBI:,.0f} MiB. Send it smaller, or as a JPEG."
        )


def _decoding(header: ImageHeader) -> float:
    rates = _RATES[header.format, "" if header.format in ("AVIF", "HEIF") else header.variant]
    cost = _BASE_COST
    cost += rates.per_mpx * header.area_px / MEGA
    cost += rates.per_raw_mb * header.raw_nbytes / MEGA
    cost += rates.per_coded_mb * header.coded_nbytes / MEGA
    cost += _PER_PIECE * header.pieces_walked
    if header.interlaced:
        cost += _PER_INTERLACED_MPX * header.area_px / MEGA
    if header.scans > 1:
        coefficients = header.block_nbytes if header.format == "TIFF" else header.raw_nbytes
        cost += _PER_SCAN_MB * (header.scans - 1) * coefficients / MEGA
    return 2 * cost if header.decoded_twice else cost


def _conversion(header: ImageHeader) -> float:
    """Return the cost per megapixel of applying the orientation and converting to RGB."""
    rate = _CONVERSIONS[header.conversion]
    if header.orientation > 1 and header.format != "HEIF":
        rate += _PER_TURNED_MPX
    return rate


def _resize(width: int, height: int, resizing: Resizing) -> float:
    """Return the cost of shrinking by whole factors and of Pillow's two resize passes."""
    side = resizing.output_px
    across, down = _reduction(width, height, resizing)
    cost = 0.0
    if across * down > 1:
        cost += _PER_REDUCED_MPX * width * height / MEGA
        width = -(-width // across)
        height = -(-height // down)
    passes = height * max(width, side) + side * max(height, side)
    cost += _PER_RESIZED_MPX * resizing.support / 2 * passes / MEGA
    return cost * (1 + _TILE_OVERLAP) if resizing.tiles else cost


def _reduction(width: int, height: int, resizing: Resizing) -> tuple[int, int]:
    """Return the whole factors by which a JPEG is shrunk first; see `preprocess.resize_box`."""
    if resizing.gap is None:
        return 1, 1
    across = int(width / resizing.output_px / resizing.gap)
    down = int(height / resizing.output_px / resizing.gap)
    return max(1, across), max(1, down)


def _memory(header: ImageHeader, width: int, height: int, resizing: Resizing | None) -> int:
    """Return the total size of buffers in the step of preparation that needs the most."""
    stored = width * height * header.pixel_nbytes * (2 if header.decoded_twice else 1)
    rgb = width * height * 4
    steps = [stored + _decoder_nbytes(header)]
    if header.orientation > 1 and header.format != "HEIF":
        steps.append(2 * stored)
    if header.conversion:
        steps.append(stored + rgb + _STRIP_NBYTES)
    if resizing is not None:
        steps.append(rgb + _resizing_nbytes(width, height, resizing))
    copied = header.coded_nbytes if header.keep else 0
    return max(steps) + copied + _FRAME_NBYTES


def _decoder_nbytes(header: ImageHeader) -> int:
    """Return the bytes of the decoder's buffers besides Pillow's image."""
    area = header.area_px
    if header.format == "WEBP":
        # Two canvases, the frame for Pillow, and the planes or pixels inside libwebp.
        planes = 4 if header.variant == "lossless" else 3
        return area * (4 + 4 + 4 + planes) + 2 * header.coded_nbytes
    if header.format in ("AVIF", "HEIF"):
        return 2 * header.raw_nbytes + 2 * header.block_nbytes + header.coded_nbytes
    if header.format == "TIFF" and header.variant == "raw":
        return 0
    return header.block_nbytes


def _resizing_nbytes(width: int, height: int, resizing: Resizing) -> int:
    """Return the bytes of a resize besides the image: a tile's copy, and intermediate results."""
    side = resizing.output_px
    outputs = 5 * side * side * (_MAX_VIEWS if resizing.tiles else 1)
    if resizing.gap is None:
        tile = int(_LARGEST_TILE * 4 * width * height) if resizing.tiles else 0
        return outputs + tile + 4 * side * height
    across, down = _reduction(width, height, resizing)
    first = outputs + 4 * side * -(-height // down)
    if across * down == 1:
        return first + (4 * width * height if resizing.tiles else 0)
    return first + 4 * width * height // (across * down)
