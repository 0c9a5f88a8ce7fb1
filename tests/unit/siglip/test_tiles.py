"""Tiles cover an image, overlap, are nearly square, and are left out for small images."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.siglip.tiles import MAX_TILES, OVERLAP, tile_boxes, tile_grid, view_boxes


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((100, 100), (2, 2)),
        ((640, 480), (2, 3)),
        ((480, 640), (3, 2)),
        ((200, 100), (2, 4)),
        ((300, 100), (1, 3)),
        ((100, 5_000), (8, 1)),
    ],
)
def test_grids_follow_the_proportions(size: tuple[int, int], grid: tuple[int, int]) -> None:
    """Rows and columns, by hand."""
    assert tile_grid(*size) == grid


@given(st.integers(1, 3_000), st.integers(1, 3_000))
def test_tiles_cover_everything_and_stay_inside(width: int, height: int) -> None:
    """Every pixel is in a tile, every tile is inside the image, and there are at most eight."""
    boxes = tile_boxes(width, height)
    assert 2 <= len(boxes) <= MAX_TILES
    for begin, end, length in ((0, 2, width), (1, 3, height)):
        spans = sorted({(box[begin], box[end]) for box in boxes})
        assert spans[0][0] == 0
        assert max(high for _, high in spans) == length
        assert all(0 <= low < high <= length for low, high in spans)
        assert all(after[0] <= before[1] for before, after in itertools.pairwise(spans))


def test_neighbours_share_a_fifth() -> None:
    """A thing no larger than the overlap is whole in one of the tiles that a cut goes through."""
    left, right = tile_boxes(1_000, 1_000)[:2]
    assert (left[2] - right[0]) / (left[2] - left[0]) == pytest.approx(OVERLAP, abs=0.01)


def test_small_pictures_are_not_cut() -> None:
    """What the model sees whole at its own size has no more to show."""
    assert view_boxes(64, 48, 64) == [(0, 0, 64, 48)]
    whole, *tiles = view_boxes(65, 48, 64)
    assert whole == (0, 0, 65, 48)
    assert len(tiles) == 6
