"""How much smaller JPEGs are decoded, and what that changes of the pixels."""

import dataclasses
import functools
import io
from collections.abc import Callable
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps
from transformers import SiglipImageProcessorPil

from serve_app.config.service import parse_config
from serve_app.errors import ConfigError, ImageTooLarge
from serve_app.images.cost import Resizing, predict
from serve_app.images.decoding_plan import (
    MIN_MARGIN,
    QUICK_MARGIN,
    SHARP_MARGIN,
    SMALL_PX,
    draft_scale,
    plan_decoding,
)
from serve_app.images.detail import MAX_DETAIL, finest_detail, has_fine_detail
from serve_app.images.formats import FORMATS
from serve_app.images.header import ImageHeader
from serve_app.images.header_reading import read_header
from serve_app.images.limits import ImageLimits
from tests.hostile import encoded as make
from tests.hostile.measured import preparer

JPEG = ImageHeader(
    format="JPEG",
    width=4000,
    height=3000,
    coded_nbytes=3_000_000,
    variant="baseline",
    raw_nbytes=18_000_000,
)
EXACT = ImageLimits(decoding="exact")
SIZE = (2600, 1950)
"""Large enough that JPEGs are decoded smaller for all of `SIDES`."""
SIDES = (96, 160, 224, 384)
Pixels = npt.NDArray[np.int16]


def photo_like(width: int, height: int, seed: int) -> Image.Image:
    """Return noise with the spectrum of natural images (amplitude 1/f), and some edges."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    noise = rng.standard_normal((3, *frequency.shape)) + 1j * rng.standard_normal(
        (3, *frequency.shape)
    )
    channels = np.fft.irfft2(noise / frequency, (height, width))
    channels = 0.85 * channels[:1] + 0.5 * channels
    channels *= 45 / channels.std()
    image = Image.fromarray(
        np.clip(channels + 120, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()
    )
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x = rng.integers(0, width)
        y = rng.integers(0, height)
        radius = rng.integers(20, height // 6)
        grey = int(rng.integers(60, 200))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(grey, grey, grey // 2))
    return image


def exact_pixels(data: bytes, size_px: int, resample: int) -> Pixels:
    """Return what transformers' own processor makes of a full decode."""
    processor = SiglipImageProcessorPil(
        size={"height": size_px, "width": size_px},
        resample=Image.Resampling(resample),
        do_rescale=False,
        do_normalize=False,
    )
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
        found = processor(upright, return_tensors="np")["pixel_values"][0]
    return cast(Pixels, found.transpose(1, 2, 0).astype(np.int16))


CONTENT: dict[str, Callable[[], Image.Image]] = {
    "text of 20 px": lambda: make.text_page(*SIZE, 20),
    "text of 34 px": lambda: make.text_page(*SIZE, 34),
    "text of 60 px": lambda: make.text_page(*SIZE, 60),
    "photo": lambda: photo_like(*SIZE, 1),
    "other photo": lambda: photo_like(*SIZE, 2),
}


@functools.cache  # nothing is drawn while pytest collects the tests
def content(name: str) -> Image.Image:
    """Return an image of `CONTENT`, which is not to be changed."""
    return CONTENT[name]()


@pytest.mark.parametrize("size_px", SIDES)
@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("name", CONTENT)
def test_fast_decoding_changes_photos_and_text_by_at_most_4(
    name: str, resample: int, size_px: int
) -> None:
    """Of 255, beside transformers' processor, with colour at full and at half resolution."""
    for options in ({"quality": 75}, {"quality": 92, "subsampling": 0}):
        data = make.saved(content(name), "JPEG", **options)
        found = (
            preparer(ImageLimits(), size_px, resample).prepare(data).pixel_values.astype(np.int16)
        )
        assert np.abs(found - exact_pixels(data, size_px, resample)).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sides_that_are_no_multiple_of_the_scale_stay_within_the_bound(orientation: int) -> None:
    """The last row and column of a smaller decode count in part, in every orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = content("photo").crop((0, 0, 2003, 1501))
    data = make.saved(photo, "JPEG", quality=90, exif=exif)
    found = preparer(ImageLimits(), 96).prepare(data).pixel_values.astype(np.int16)
    assert np.abs(found - exact_pixels(data, 96, 3)).max() <= 4


def test_patch_grids_are_those_of_the_full_size() -> None:
    """A NaFlex image that is decoded smaller is resized to the same grid."""
    for width, height in ((3205, 2401), (6001, 3603), (4999, 4801)):
        data = make.saved(make.flat(width, height), "JPEG")
        fast, exact = (preparer(limits, None) for limits in (ImageLimits(), EXACT))
        assert fast._decode(data, views=False)[0].size != (width, height)
        assert fast.prepare(data).spatial_shape == exact.prepare(data).spatial_shape


def test_a_grey_page_is_within_the_bound() -> None:
    """Grey JPEGs have one channel, in which detail is looked for."""
    data = make.saved(content("text of 34 px").convert("L"), "JPEG", quality=85)
    found = preparer(ImageLimits(), 224).prepare(data).pixel_values.astype(np.int16)
    assert np.abs(found - exact_pixels(data, 224, 3)).max() <= 4


@pytest.mark.parametrize("size_px", [64, 224])
@pytest.mark.parametrize("name", ["text of 20 px", "photo"])
def test_exact_decoding_equals_transformers(name: str, size_px: int) -> None:
    """Not one pixel differs."""
    data = make.saved(content(name), "JPEG", quality=80)
    found = preparer(EXACT, size_px).prepare(data).pixel_values
    np.testing.assert_array_equal(found, exact_pixels(data, size_px, 3))


@pytest.mark.parametrize("views", [False, True])
def test_exact_decoding_never_shrinks(views: bool) -> None:
    """Neither the image nor its tiles, and the cost of that is predicted."""
    data = make.saved(content("photo"), "JPEG")
    exact, fast = (preparer(limits, 96) for limits in (EXACT, ImageLimits()))
    assert exact._decode(data, views)[0].size == SIZE
    assert fast._decode(data, views)[0].size < SIZE
    assert exact.cost_of(data, views).nbytes > fast.cost_of(data, views).nbytes


@pytest.mark.parametrize(
    ("size", "draft_px", "margin", "scale"),
    [
        ((4000, 3000), 384, 2.9, 2),
        ((4000, 3000), 384, 5.4, 1),
        ((4000, 3000), 224, 5.4, 2),
        ((8064, 6048), 384, 2.0, 4),
        ((1500, 1500), 384, 2.0, 1),
        ((40_000, 700), 384, 2.0, 1),
        ((9800, 9800), 224, 5.4, 8),
    ],
)
def test_the_shorter_side_decides(
    size: tuple[int, int], draft_px: int, margin: float, scale: int
) -> None:
    """The numbers are by hand: the shorter side over margin and target, down to 1, 2, 4 or 8."""
    header = dataclasses.replace(JPEG, width=size[0], height=size[1])
    assert draft_scale(header, draft_px, margin) == scale


def test_pillow_decodes_at_the_planned_scale() -> None:
    """Decoded sizes of real JPEGs, whose sides are no multiple of the scale."""
    for width, height in ((1601, 1200), (3101, 801), (803, 3100), (6201, 6203)):
        data = make.saved(make.flat(width, height).convert("L"), "JPEG")
        plan = plan_decoding(
            read_header(data, FORMATS), 384, Resizing(384, gap=MIN_MARGIN), ImageLimits()
        )
        image = preparer()._decode(data, views=False)[0]
        assert image.size == (-(-width // plan.scale), -(-height // plan.scale))


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from([96, 224, 384, 512, 1024]))
def test_plans_keep_their_margins(width: int, height: int, size_px: int) -> None:
    """The first decode has the margin for photos, the second that for text; small ones have one."""
    header = dataclasses.replace(
        JPEG, width=width, height=height, coded_nbytes=1000, raw_nbytes=width * height
    )
    no_limits = ImageLimits(max_pixels=2**40, max_cost=1e9, max_decode_bytes=2**50)
    plan = plan_decoding(header, size_px, Resizing(size_px, gap=MIN_MARGIN), no_limits)
    shorter = min(width, height)
    if plan.scale > 1:
        assert shorter / plan.scale >= QUICK_MARGIN * size_px
    if plan.sharp_scale > 1:
        assert shorter / plan.sharp_scale >= SHARP_MARGIN * size_px
    if plan.sharp_scale < plan.scale:
        assert width * height / plan.sharp_scale**2 > SMALL_PX


@given(
    st.integers(1, 8000),
    st.integers(1, 8000),
    st.sampled_from(["baseline", "progressive"]),
    st.sampled_from(["", "grey", "cmyk"]),
    st.integers(1000, 20_000_000),
    st.sampled_from([224, 384, 512]),
)
def test_limits_refuse_no_more_than_a_decode_at_twice_the_target(
    width: int, height: int, variant: str, conversion: str, nbytes: int, size_px: int
) -> None:
    """Where the better decode would exceed a limit, a cheaper one is planned."""
    header = dataclasses.replace(
        JPEG,
        width=width,
        height=height,
        variant=variant,
        conversion=conversion,
        coded_nbytes=nbytes,
        raw_nbytes=width * height * 3 // 2,
    )
    limits = ImageLimits(max_side_px=8000, max_pixels=64_000_000)
    cheapest = Resizing(size_px, gap=MIN_MARGIN)
    scale = draft_scale(header, size_px, MIN_MARGIN)
    cost = predict(header, scale, cheapest)
    fits = cost.cost <= limits.max_cost and cost.nbytes <= limits.max_decode_bytes
    try:
        plan = plan_decoding(header, size_px, cheapest, limits)
    except ImageTooLarge:
        assert not fits
    else:
        assert plan.cost.cost <= limits.max_cost
        assert plan.cost.nbytes <= limits.max_decode_bytes


def test_fine_detail_is_found_in_text_and_not_in_photos() -> None:
    """At half the size, as it is looked for."""
    half = (SIZE[0] // 2, SIZE[1] // 2)
    for name in CONTENT:
        image = content(name)
        assert has_fine_detail(image.resize(half)) is name.startswith("text"), name
    assert not has_fine_detail(Image.new("RGB", half))
    assert not has_fine_detail(Image.new("L", (5, 5)))


def test_detail_is_the_mean_second_difference_of_a_tile() -> None:
    """By hand: alternating columns of 0 and 200 differ by 400 in at least 14 of 16 columns."""
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, 1::2] = 200
    assert finest_detail(stripes) == pytest.approx(400)
    assert finest_detail(stripes.T.copy()) == pytest.approx(400)
    assert finest_detail(np.full((64, 64), 7, np.uint8)) == 0
    assert MAX_DETAIL < 400


def test_most_large_photos_are_predicted_to_be_decoded_once() -> None:
    """The limits count the second decode, the queue does not."""
    plan = plan_decoding(
        JPEG, 384, Resizing(output_px=384, tiles=False, support=2.0, gap=MIN_MARGIN), ImageLimits()
    )
    assert (plan.scale, plan.sharp_scale) == (2, 1)
    assert plan.cost.usual < 0.6 * plan.cost.cost
    small = plan_decoding(
        JPEG, 224, Resizing(output_px=224, tiles=False, support=2.0, gap=MIN_MARGIN), ImageLimits()
    )
    assert small.scale == small.sharp_scale
    assert small.cost.usual == small.cost.cost


def test_the_setting_reaches_the_decoder() -> None:
    """It is a top-level setting, and other values are refused with the supported ones."""
    assert parse_config({"labels": ["cat"]}).image_limits().decoding == "fast"
    assert parse_config({"labels": ["cat"], "image_decoding": "exact"}).image_limits() == EXACT
    with pytest.raises(ConfigError, match=r"image_decoding.*'fast' or 'exact'"):
        parse_config({"labels": ["cat"], "image_decoding": "quick"})
