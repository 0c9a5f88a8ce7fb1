"""From the logits of names to one score a tag: the best of its names, of an image's views, and what
it is measured by.

Every score is handed on as a logit, so that one rule compares all of them with thresholds.

Not here: the logits themselves (`siglip/scoring.py`), choosing tags by their scores
(`selection.py`).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from serve_app.errors import InvalidRequest
from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.tag_table import TagTable

Score = Literal["sigmoid", "logit", "calibrated", "margin", "softmax"]
NO_CALIBRATION = "score calibrated: there is no calibration for these labels and templates; run siglip-serve calibrate, or ask for sigmoid."
TILE_MARGIN = 3.0
"""Logits by which a tile's hit counts less than the whole picture's: the best of several looks is
higher by chance alone, and a tile may show half of a thing that looks like another. Measured on the
demo's scenes (2026-11-23, 150 a size, F1): things of the usual size 0.96 standard, 0.74 with no
margin, 0.82 with 3; of 0.45 of it 0.51, 0.82 and 0.83."""


def best_names(logits: FloatArray, table: TagTable) -> FloatArray:
    """Return (V, T), each tag's best name, of (V, R or more) logits in the order of
    `TagVocabulary.names`.
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
    """The logits of images that were looked at in several views.

    Attributes:
        compared: (B, T) of the best view; a tile's is less by `TILE_MARGIN`.
        raw: (B, T) the model's own logits of the same views.
    """

    compared: FloatArray
    raw: FloatArray


def pool_views(logits: FloatArray, views: Sequence[int]) -> PooledLogits:
    """Return for each image the best of the whole image and, less `TILE_MARGIN`, of its tiles.

    Args:
        logits: (V, T) of all views of all images, each image's whole picture first, then its tiles.
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
    """Return (B, T) float32 what tags are chosen by: logits of the requested score, each tag's
    `bias` added.

    The bias is added for `score: logit` too. Its values are what the sigmoid of `score: sigmoid` is
    taken of, so both give the same tags in the same order. The logit without it is `raw_score`.

    Args:
        logits: (B, T) of the model.
        background: (B, G) logits of the background prompts, for `margin`.
        table: The vocabulary's arrays.
        score: Which one.

    Raises:
        InvalidRequest: The vocabulary has not what the score needs.
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

    The logit of a share p is log p - log(1 - p), where 1 - p is the sum of all other shares and not
    a difference, so that shares which round to 1 keep their order.
    """
    if (
        not len(logits) or np.isneginf(logits[0]).all()
    ):  # no tag may be given; which ones may is the same for all images
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
