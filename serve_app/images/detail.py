"""Finds fine detail, such as text, in an image that was decoded smaller than it is stored.

Not here: decoding such an image again (`decoding_plan.py`, `decoding.py`).
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

TILE_PX = 16
"""Side of the tiles in which detail is averaged, because a single edge is not fine detail."""

ROWS_PER_TILE = 4
"""Distance of the examined rows of tiles, in tiles.

Examining every fourth row takes a quarter of the time. Lines of text may fall between two rows, but
a page has many lines.
"""

MAX_DETAIL = 40.0
"""Mean absolute second difference of a tile's pixels above which an image has fine detail.

The maximum is 510. Source: bench/decoding.py. Images like photos have 12 to 35, with more noise up
to 49; pages of black text have 77 to 162.
"""


def has_fine_detail(image: Image.Image) -> bool:
    """Return whether any examined tile has as much detail as black text on white."""
    channel = image.getchannel(min(1, len(image.getbands()) - 1))  # green, or grey
    return finest_detail(np.asarray(channel)) > MAX_DETAIL


def finest_detail(pixels: npt.NDArray[np.uint8]) -> float:
    """Return the largest mean absolute second difference of a tile along rows or columns.

    Args:
        pixels: (H, W) of one channel.
    """
    height, width = pixels.shape
    step = TILE_PX * ROWS_PER_TILE
    rows = height // step
    columns = width // TILE_PX
    if not rows or not columns:
        return 0.0
    strips = pixels[: rows * step, : columns * TILE_PX].reshape(rows, step, columns * TILE_PX)
    values = strips[:, :TILE_PX].astype(np.int16)

    across = np.abs(2 * values[:, :, 1:-1] - values[:, :, :-2] - values[:, :, 2:])
    across = np.pad(across, ((0, 0), (0, 0), (1, 1)))
    down = np.abs(2 * values[:, 1:-1] - values[:, :-2] - values[:, 2:])
    return max(_largest_tile_mean(part, columns) for part in (across, down))


def _largest_tile_mean(differences: npt.NDArray[np.int16], columns: int) -> float:
    # Rows are summed first, because they are contiguous; 16 rows of at most 510 fit in 16 bits.
    by_column = differences.sum(axis=1, dtype=np.int16)
    by_tile = by_column.reshape(len(by_column), columns, TILE_PX).sum(axis=2, dtype=np.int32)
    num_pixels: int = differences.shape[1] * TILE_PX
    return float(by_tile.max()) / num_pixels
