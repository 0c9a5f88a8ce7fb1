"""Decides whether a JPEG is decoded at full size or smaller by a whole factor.

libjpeg can decode a JPEG at a half, a quarter or an eighth of its size in a fraction of the time.
After resizing, the pixels then differ from those of a full decode. The difference depends on the
content and on the remaining factor of the resize. `bench/decoding.py` measures both; docs/siglip.md
has the numbers.

Not here: the cost of a decode (`cost.py`), detecting fine detail (`detail.py`).
"""

import dataclasses
from dataclasses import dataclass

from serve_app.images.cost import DecodeCost, Resizing, check, predict
from serve_app.images.header import ImageHeader
from serve_app.images.limits import ImageLimits

SHARP_MARGIN = 5.4
"""Decoded at this many times the target or more, text and photos differ by at most 4 of 255."""

QUICK_MARGIN = 2.9
"""Decoded at this many times the target or more, photos differ by up to 6 of 255, text by 12."""

MIN_MARGIN = 2.0
"""The margin for tiles, thumbnails and images that would otherwise exceed a limit.

Text differs by up to 18 of 255.
"""

MIN_PRECISE_PX = 96
"""Images for checkpoints with smaller inputs than this are decoded with `MIN_MARGIN`.

The demo checkpoint has 64 px; the smallest input of the released checkpoints is 224 px. For the
demo, a full decode of a 640 × 480 photo takes 3.9 ms instead of 1.1.
"""

SMALL_PX = 3_200_000
"""Images with at most this many pixels are always decoded with `SHARP_MARGIN`, in about 30 ms."""

_SCALES = (8, 4, 2)
_DETAIL_PER_MPX = 0.03
"""Cost per megapixel of searching for fine detail. Source: bench/decoding.py."""


@dataclass(frozen=True, slots=True)
class DecodingPlan:
    """How an image is decoded, and the cost of that.

    Attributes:
        header: The image's header.
        scale: Whole factor by which a JPEG is decoded smaller.
        sharp_scale: Factor by which it is decoded again if it has fine detail; equal to `scale` if
            there is no second decode.
        gap: The `reducing_gap` of `preprocess.resize_square`; None for an exact resize.
        cost: Predicted cost, including the second decode.
        resizing: How the image is resized; None if it is only decoded and converted.
    """

    header: ImageHeader
    scale: int
    sharp_scale: int
    gap: float | None
    cost: DecodeCost
    resizing: Resizing | None


def plan_decoding(
    header: ImageHeader,
    draft_px: int | None,
    resizing: Resizing | None,
    limits: ImageLimits,
) -> DecodingPlan:
    """Choose how an image is decoded.

    Args:
        header: The image's header.
        draft_px: Side in pixels of the square (or of the square of equal area) that the image is
            resized to; None for full size.
        resizing: How the image is resized; None if it is only decoded and converted.
        limits: The limits of images, and whether JPEGs may be decoded smaller.

    Raises:
        ImageTooLarge: The image exceeds one of `limits`.
    """
    if draft_px is None or header.format != "JPEG" or limits.decoding == "exact":
        chosen = _single(header, 1, resizing, None)
    elif resizing is None or resizing.tiles or resizing.output_px < MIN_PRECISE_PX:
        chosen = _for_tiles(header, draft_px, resizing, limits)
    else:
        chosen = _fast(header, draft_px, resizing, limits)
    check(header, chosen.cost, limits)
    return chosen


def draft_scale(header: ImageHeader, draft_px: int, margin: float) -> int:
    """Return the largest factor for which both sides are at least `margin` times `draft_px`."""
    if header.full_size:
        return 1
    ratio = min(header.width, header.height) / (margin * draft_px)
    return next((scale for scale in _SCALES if ratio >= scale), 1)


def _fast(
    header: ImageHeader, draft_px: int, resizing: Resizing, limits: ImageLimits
) -> DecodingPlan:
    """Return the most accurate plan within the limits that is fast for most images."""
    sharp = _single(header, draft_scale(header, draft_px, SHARP_MARGIN), resizing, SHARP_MARGIN)
    quick = _single(header, draft_scale(header, draft_px, QUICK_MARGIN), resizing, SHARP_MARGIN)
    if quick.scale == sharp.scale or header.area_px / sharp.scale**2 <= SMALL_PX:
        best = sharp
    else:
        best = _twice(quick, sharp)
    for plan in (best, quick):
        if _within(plan.cost, limits):
            return plan
    return _single(header, draft_scale(header, draft_px, MIN_MARGIN), resizing, MIN_MARGIN)


def _for_tiles(
    header: ImageHeader, draft_px: int, resizing: Resizing | None, limits: ImageLimits
) -> DecodingPlan:
    """Return the plan for tiles and thumbnails.

    The tiles of a small image are resized with the same margin as a small image without tiles.
    """
    scale = draft_scale(header, draft_px, MIN_MARGIN)
    quick = _single(header, scale, resizing, MIN_MARGIN)
    if (
        resizing is None
        or resizing.output_px < MIN_PRECISE_PX
        or header.area_px / scale**2 > SMALL_PX
    ):
        return quick
    precise = _single(header, scale, resizing, SHARP_MARGIN)
    return precise if _within(precise.cost, limits) else quick


def _single(
    header: ImageHeader, scale: int, resizing: Resizing | None, gap: float | None
) -> DecodingPlan:
    if resizing is None or resizing.gap is None:
        gap = None
    else:
        resizing = dataclasses.replace(resizing, gap=gap)
    return DecodingPlan(header, scale, scale, gap, predict(header, scale, resizing), resizing)


def _twice(quick: DecodingPlan, sharp: DecodingPlan) -> DecodingPlan:
    """Return a plan that decodes an image with fine detail again, at the scale of `sharp`."""
    header = quick.header
    first = predict(header, quick.scale, None)
    looking = _DETAIL_PER_MPX * header.area_px / quick.scale**2 / 1e6
    nbytes = max(quick.cost.nbytes, sharp.cost.nbytes)
    once = max(quick.cost.cost, first.cost + looking)
    cost = DecodeCost(first.cost + looking + sharp.cost.cost, nbytes, 0.0)
    cost = dataclasses.replace(cost, second_decode=max(0.0, cost.cost - once))
    return DecodingPlan(header, quick.scale, sharp.scale, sharp.gap, cost, sharp.resizing)


def _within(cost: DecodeCost, limits: ImageLimits) -> bool:
    return cost.cost <= limits.max_cost and cost.nbytes <= limits.max_decode_bytes
