"""Overlapping tiles of a picture, for things too small to be seen in the whole of it.

A tower's pooled embedding is dominated by the main subject. Tiles keep the picture's proportions:
nearly square ones, more of them along the longer side. Source: the SigLIP 2 authors' advice
(google-research/big_vision #168).

Not here: what a tile's score counts (`tagging/scores.py`).
"""

import math

OVERLAP = 0.2
"""Of a tile's side: something that a cut goes through is whole in a neighbour if it is no larger
than this."""
MAX_TILES = 8

Box = tuple[int, int, int, int]
"""Left, upper, right, lower, in pixels."""


def tile_grid(width: int, height: int) -> tuple[int, int]:
    """Return rows and columns of tiles: two along the shorter side, as many along the longer as
    keeps them nearly square.

    A strip whose sides differ by more than a factor of `MAX_TILES` / 2 is cut along its longer side
    only.
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
    """Return the tiles of a picture, row by row; together they cover it, neighbours share `OVERLAP`
    of their side.
    """
    rows, columns = tile_grid(width, height)
    return [
        (left, upper, right, lower)
        for upper, lower in _spans(height, rows)
        for left, right in _spans(width, columns)
    ]


def view_boxes(width: int, height: int, min_px: int) -> list[Box]:
    """Return the whole image and its tiles as boxes; only the whole if the model sees every pixel.

    Args:
        width: In pixels.
        height: In pixels.
        min_px: Side in pixels of what the model takes; an image within it is not cut.
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
    return [(round(step * at), round(step * at) + side) for at in range(count)]
