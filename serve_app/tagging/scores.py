"""From the logits of names to one score for each tag: of its best name and of its best view.

Every score is passed on as a logit, so that one rule compares all of them with thresholds.

Not here: the logits themselves (`siglip/scoring.py`), choosing tags by their scores
(`selection.py`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from serve_app.errors import InvalidRequest
from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.choices import Score
from serve_app.tagging.tag_table import TagTable

NO_CALIBRATION = (
    "score calibrated: there is no calibration for these labels and templates; run siglip-serve "
    "calibrate, or ask for sigmoid."
)
TILE_MARGIN = 3.0
"""Logits that a tile's score is lowered by, compared with the whole image's. The best of several
views is higher by chance alone, and a tile may show half of a thing that looks like another.
Measured on the demo's scenes (2026-11-23, 150 a size, F1): things of the usual size 0.96 standard,
0.74 without a margin, 0.82 with 3; things of 0.45 of that size 0.51, 0.82 and 0.83."""


def best_names(logits: FloatArray, table: TagTable) -> FloatArray:
    """Return the logits (V, T) of each tag's best name.

    Args:
        logits: (V, R or more) logits in the order of `TagVocabulary.names`.
        table: The vocabulary's arrays.
    """
    tags = logits[:, : len(table)]
    if not len(table.alias_owners):
        return tags
    count = len(table.vocabulary.names)
    tags = tags.copy()
    aliases = np.maximum.reduceat(logits[:, len(table) : count], table.alias_starts, axis=1)
    tags[:, table.alias_owners] = np.maximum(tags[:, table.alias_owners], aliases)
    return tags


class PooledLogits(NamedTuple):
    """The logits of images with several views.

    Attributes:
        compared: (B, T) logits of the best view; a tile's is lowered by `TILE_MARGIN`.
        raw: (B, T) the model's own logits of the same views.
    """

    compared: FloatArray
    raw: FloatArray


def pool_views(logits: FloatArray, views: Sequence[int]) -> PooledLogits:
    """Return for each image the best of the whole image and, less `TILE_MARGIN`, of its tiles.

    Args:
        logits: (V, T) logits of all views, for each image the whole image first, then its tiles.
        views: B numbers of views, which sum up to V.
    """
    if all(count == 1 for count in views):
        return PooledLogits(logits, logits)
    ends = np.cumsum(views)
    starts = ends - np.asarray(views)
    whole = logits[starts]

    tiles = logits.copy()
    tiles[starts] = -np.inf
    best_tiles: FloatArray = np.maximum.reduceat(tiles, starts, axis=0)
    discounted = best_tiles - np.float32(TILE_MARGIN)

    is_tile = discounted > whole
    return PooledLogits(np.where(is_tile, discounted, whole), np.where(is_tile, best_tiles, whole))


def in_score(
    logits: FloatArray, background: FloatArray | None, table: TagTable, score: Score
) -> FloatArray:
    """Return (B, T) float32 the logits of the requested score, with each tag's `bias` added.

    The bias is added for `score: logit` too, so `logit` and `sigmoid` give the same tags in the
    same order. The logit without the bias is `raw_score`.

    Args:
        logits: (B, T) logits of the model.
        background: (B, G) logits of the background prompts, for `margin`.
        table: The vocabulary's arrays.
        score: The requested score.

    Raises:
        InvalidRequest: The vocabulary does not have what the score needs.
    """
    match score:
        case "calibrated":
            if table.lines is None:
                raise InvalidRequest(NO_CALIBRATION)
            scores = logits * table.lines.scale + table.lines.offset
        case "margin":
            if background is None or not background.shape[1]:
                raise InvalidRequest(
                    "score margin: this vocabulary has no background_prompts to compare with."
                )
            scores = logits - background.max(axis=1, keepdims=True)
        case _:
            scores = logits
    return scores if table.bias is None else scores + table.bias


def softmax_logits(logits: FloatArray) -> FloatArray:
    """Return the logits of the softmax over the last axis: their sigmoids sum up to 1 across tags.

    The logit of a share p is log p - log(1 - p). Here 1 - p is the sum of all other shares and not
    a difference, so shares that round to 1 keep their order.
    """
    # the same tags are allowed for all images; here none is
    if not len(logits) or np.isneginf(logits[0]).all():
        return logits
    shifted = logits - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    rows = np.arange(len(powers))
    best = powers.argmax(axis=1)
    top = powers[rows, best]
    powers[rows, best] = 0.0
    rest = powers.sum(axis=1, dtype=np.float64)
    others = (rest[:, None] - powers + top[:, None]).astype(np.float32)
    others[rows, best] = rest
    with np.errstate(divide="ignore"):  # a single tag has no others
        shares: FloatArray = shifted - np.log(others)
    return shares
