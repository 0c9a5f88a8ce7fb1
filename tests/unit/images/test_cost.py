"""The cost of an image is predicted from its header, and refusals say what to do."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config.service import parse_config
from serve_app.errors import ImageTooLarge
from serve_app.images.cost import Resizing, check, predict
from serve_app.images.decoding_plan import plan_decoding
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
RESIZING = Resizing(384, gap=2.0)


def test_the_unit_is_a_12_megapixel_jpeg() -> None:
    """In standard quality, which is how the limit is documented."""
    assert predict(JPEG, 2, RESIZING).cost == pytest.approx(1.0, abs=0.25)


@given(
    st.sampled_from(["baseline", "progressive", "multiscan", "arithmetic"]),
    st.integers(1, 32_768),
    st.integers(1, 32_768),
    st.integers(0, 20_000_000),
    st.integers(1, 100),
)
def test_more_of_anything_costs_more(
    variant: str, width: int, height: int, nbytes: int, scans: int
) -> None:
    """With more bytes and scans no image is predicted to be cheaper.

    Width is left alone: wide JPEGs are shrunk before they are resized.
    """
    samples = width * height * 3
    header = ImageHeader(
        format="JPEG",
        width=width,
        height=height,
        coded_nbytes=nbytes,
        variant=variant,
        raw_nbytes=samples,
        scans=scans,
    )
    larger = dataclasses.replace(header, coded_nbytes=nbytes + 1, scans=scans + 1)
    before, after = (predict(one, 1, RESIZING) for one in (header, larger))
    assert after.cost > before.cost
    assert after.nbytes >= before.nbytes


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (ImageLimits(max_side_px=3_999), r"4000×3000.*3,999 on each side.*Crop it"),
        (ImageLimits(max_pixels=11_999_999), r"4000×3000.*11,999,999.*Send it smaller"),
        (ImageLimits(max_cost=0.5), r"baseline JPEG.* times the processor time.*limit is 0\.5"),
        (ImageLimits(max_decode_bytes=2**20), r"MiB to decode; the limit is 1 MiB"),
    ],
)
def test_refusals_say_the_number_the_limit_and_what_to_do(
    limits: ImageLimits, message: str
) -> None:
    """Each of the four limits, on a header alone."""
    with pytest.raises(ImageTooLarge, match=message):
        check(JPEG, predict(JPEG, 2, RESIZING), limits)


def test_within_the_limits_nothing_is_refused() -> None:
    """Photos of today's phones, as JPEG, in both qualities."""
    for width, height in ((4000, 3000), (5712, 4284), (8064, 6048)):
        header = dataclasses.replace(
            JPEG, width=width, height=height, raw_nbytes=width * height * 3 // 2
        )
        for draft_px, resizing in ((384, RESIZING), (1536, Resizing(384, tiles=True, gap=2.0))):
            plan_decoding(header, draft_px, resizing, ImageLimits())


def test_limits_come_from_the_configuration() -> None:
    """The defaults of both are equal, and each setting arrives."""
    assert parse_config({"labels": ["cat"]}).image_limits() == ImageLimits()
    limits = {
        "max_image_pixels": 1_000,
        "max_image_side": 2_000,
        "max_decode_cost": 3.5,
        "max_decode_bytes": 4_000_000,
    }
    found = parse_config({"labels": ["cat"], "limits": limits}).image_limits()
    assert (found.max_pixels, found.max_side_px, found.max_cost, found.max_decode_bytes) == (
        1_000,
        2_000,
        3.5,
        4_000_000,
    )


def test_high_quality_costs_more() -> None:
    """Tiles are resized besides the whole, from a larger decode."""
    data = make.saved(make.photo(2000, 1500), "JPEG")
    standard, high = (preparer().cost_of(data, views) for views in (False, True))
    assert high.cost > standard.cost
    assert high.nbytes > standard.nbytes


def test_a_transparent_colour_is_counted() -> None:
    """It makes the image be composited on white."""
    grey = make.png((640, 480), 0, 8)
    key = make.png((640, 480), 0, 8, extra=make.png_chunk(b"tRNS", bytes(2)))
    costs = [predict(read_header(data, FORMATS), 1, None).cost for data in (grey, key)]
    assert costs[1] > costs[0]
