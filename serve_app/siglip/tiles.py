"""Cuts an image into overlapping tiles, to find objects that are small in the whole image.

The main subject dominates the pooled embedding of a whole image. Tiles are nearly square, with more
of them along the longer side.

Source: advice of the SigLIP 2 authors (google-research/big_vision #168).

Not here: combining the scores of tiles (`tagging/scores.py`).
"""

import math

OVERLAP = 0.2
"""Overlap of neighbouring tiles, as a fraction of a tile's side.

An object on a border between two tiles is complete in one of them if it is not larger than this.
"""
MAX_TILES = 8

Box = tuple[int, int, int, int]
"""Left, upper, right, lower, in pixels."""


def tile_grid(width: int, height: int) -> tuple[int, int]:
    """Return the rows and columns of tiles for an image.

    There are two tiles along the shorter side, and along the longer side as many as keep them
    nearly square. If that exceeds `MAX_TILES`, the image is cut along its longer side only.
    """
    long = max(width, height)
    short = max(1, min(width, height))
    along = round(2 * long / short)
    across = 2
    if across * along > MAX_TILES:
        across = 1
        along = min(MAX_TILES, max(2, round(long / short)))
    return (across, along) if width >= height else (along, across)


def tile_boxes(width: int, height: int) -> list[Box]:
    """Return the tiles of an image, row by row; they cover the image, and neighbours overlap."""
    rows, columns = tile_grid(width, height)
    return [
        (left, upper, right, lower)
        for upper, lower in _spans(height, rows)
        for left, right in _spans(width, columns)
    ]


def view_boxes(width: int, height: int, min_px: int) -> list[Box]:
    """Return the boxes of the whole image and its tiles.

    A small image has no tiles, because the model sees all of its pixels.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        min_px: Side of the model's input in pixels; an image that fits into it has no tiles.
    """
    whole = (0, 0, width, height)
    if width <= min_px and height <= min_px:
        return [whole]
    return [whole, *tile_boxes(width, height)]


def _spans(length: int, count: int) -> list[tuple[int, int]]:
    if count == 1:
        return [(0, length)]
    side = min(length, math.ceil(length / (count - (count - 1) * OVERLAP)))
    step = (length - side) / (count - 1)
    starts = [round(step * i) for i in range(count)]
    return [(start, start + side) for start in starts]
