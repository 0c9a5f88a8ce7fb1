"""Which tags an image gets: those at or above the threshold, the best first, no more than asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.scoring import pair_logits, sigmoid
from serve_app.siglip.weights import SimilarityHead
from serve_app.tagging.tag_bank import TagBank

SortBy = Literal["confidence", "alphabetical"]


class TagScore(NamedTuple):
    """One tag of one image: `confidence` in [0, 1], independent of every other tag's, and the logit it comes from.

    A tuple, since hundreds of them cross processes every second: a frozen dataclass takes seven times as long to unpickle.
    """

    label: str
    confidence: float
    logit: float


@dataclass(frozen=True, slots=True)
class SelectionRule:
    """How tags are chosen: `confidence_threshold` in [0, 1], at most `max_tags`, and their order."""

    confidence_threshold: float
    max_tags: int
    sort_by: SortBy = "confidence"


def select_tags(labels: Sequence[str], logits: FloatArray, rule: SelectionRule) -> tuple[TagScore, ...]:
    """Choose the tags of one image.

    Args:
        labels: T labels.
        logits: (T,) one image's logits.
        rule: Threshold, number and order.
    """
    scores = sigmoid(logits)
    passing = np.flatnonzero(scores >= np.float32(rule.confidence_threshold))
    best = passing[np.argsort(-logits[passing], kind="stable")][: rule.max_tags]
    tags = [TagScore(labels[t], float(scores[t]), float(logits[t])) for t in best.tolist()]
    if rule.sort_by == "alphabetical":
        tags.sort(key=lambda tag: tag.label)
    return tuple(tags)


def tag_embeddings(
    image_embeds: FloatArray, bank: TagBank, head: SimilarityHead, rules: Sequence[SelectionRule]
) -> list[tuple[TagScore, ...]]:
    """Score images against one tag bank and choose each one's tags.

    Args:
        image_embeds: (B, D) float32, unit norm.
        bank: T labels and their embeddings.
        head: The checkpoint's temperature and bias.
        rules: One rule an image.
    """
    logits = pair_logits(image_embeds, bank.text_embeds, head.logit_scale, head.logit_bias)
    labels = bank.vocabulary.labels
    return [select_tags(labels, row, rule) for row, rule in zip(logits, rules, strict=True)]
