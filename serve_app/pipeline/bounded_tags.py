"""Tags within limits on their JSON size: checked before the tags are built, in blocks.

Each tag is a Python object with a label and scores. Choosing tags is cheap and gives their number
before they are built.

Not here: replies with many tags on their way between replicas (`graph/replies.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from serve_app.errors import PayloadTooLarge, TaggerError
from serve_app.pipeline.scorer import TagScoring
from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.selection import TagScore
from serve_app.tagging.tag_bank import ScoredBank, choose_for_embeddings
from serve_app.tagging.tag_table import IntArray

TagOutcome = tuple[TagScore, ...] | TaggerError
"""The tags of one image, or why it has none."""

TAG_BYTES = 38
"""Bytes of JSON for a tag without its label: `{"label":"","confidence":1.23457e-05},`."""
RAW_SCORE_BYTES = 24
"""Bytes of JSON for a tag's `raw_score`, such as `,"raw_score":-1.23457e-05`."""
MAX_LABEL_BYTES = 1_536
"""Bytes of JSON for the longest label: 256 characters, each an escape sequence."""
SCORES_AT_ONCE = 1_000_000
"""Image-tag pairs in one block: their arrays take 4 MB each."""
BLOCK_TAGS = 10_000
"""Tags in one block, which takes about 10 ms to build."""


@dataclass(frozen=True, slots=True)
class TagBound:
    """Limits on the JSON size of the tags in a reply.

    Attributes:
        max_bytes: Limit for all images together; None for no limit.
        shares: Limit for each of the B images; None for no limit.
        has_raw_scores: Whether each tag has its logit.
    """

    max_bytes: int | None = None
    shares: Sequence[int] | None = None
    has_raw_scores: bool = False

    @property
    def tag_bytes(self) -> int:
        """Bytes of JSON for a tag without its label."""
        return TAG_BYTES + RAW_SCORE_BYTES * self.has_raw_scores

    def allows(self, num_images: int, max_image_bytes: int) -> bool:
        """Return whether images whose tags take at most `max_image_bytes` each are within it."""
        if self.max_bytes is not None and num_images * max_image_bytes > self.max_bytes:
            return False
        return self.shares is None or max_image_bytes <= min(self.shares, default=0)


def images_at_once(scoring: TagScoring) -> int:
    """Return how many images `tag_within` tags in one block."""
    num_labels = len(scoring.scored.table)
    num_tags = min(scoring.rule.max_tags, num_labels)
    return max(1, min(SCORES_AT_ONCE // num_labels, BLOCK_TAGS // num_tags))


def tag_within(
    image_embeds: FloatArray,
    scoring: TagScoring,
    views: Sequence[int] | None,
    bound: TagBound,
) -> Iterator[list[TagOutcome]]:
    """Tag embeddings in blocks; other requests get their turn between blocks.

    An image whose tags take more than its share has `PayloadTooLarge` as its outcome.

    Args:
        image_embeds: (V, D) float32, unit norm: every view of every image, whole images first.
        scoring: How images are scored.
        views: B numbers of views; None if each image has one.
        bound: Limits on the JSON size.

    Raises:
        PayloadTooLarge: The tags of all images together take more than `bound.max_bytes`.
    """
    counts = np.ones(len(image_embeds), np.intp) if views is None else np.asarray(views, np.intp)
    num_tags = min(scoring.rule.max_tags, len(scoring.scored.table))
    label_bytes = _label_bytes(scoring.scored, num_tags, len(counts), bound)
    num_bytes = 0
    for rows, embeds in _blocks(image_embeds, counts, images_at_once(scoring)):
        block_views = None if views is None else counts[rows].tolist()
        if label_bytes is None:
            yield list(scoring.tag(embeds, block_views))
            continue

        sizes = _image_bytes(embeds, scoring, block_views, label_bytes)
        num_bytes += int(sizes.sum())
        if bound.max_bytes is not None and num_bytes > bound.max_bytes:
            raise _too_large(f"The tags of all images take more than {bound.max_bytes:,} bytes")
        tags = scoring.tag(embeds, block_views)
        shares = None if bound.shares is None else bound.shares[rows]
        yield list(tags) if shares is None else _within_shares(tags, sizes.tolist(), shares)


def _image_bytes(
    image_embeds: FloatArray,
    scoring: TagScoring,
    views: Sequence[int] | None,
    label_bytes: IntArray,
) -> IntArray:
    """Return the JSON bytes of each image's tags (B,), without building the tags."""
    chosen = choose_for_embeddings(image_embeds, scoring.scored, scoring.head, scoring.rule, views)
    images = np.repeat(np.arange(len(chosen.counts)), chosen.counts)
    return np.bincount(images, label_bytes[chosen.tags], minlength=len(chosen.counts))


def _label_bytes(
    scored: ScoredBank, num_tags: int, num_images: int, bound: TagBound
) -> IntArray | None:
    """Return the JSON bytes of each tag (T,); None if no choice of tags can exceed the bound."""
    if bound.allows(num_images, num_tags * (bound.tag_bytes + MAX_LABEL_BYTES)):
        return None
    label_bytes = np.array([len(label.encode()) for label in scored.table.labels], np.intp)
    label_bytes += bound.tag_bytes
    num_shorter = len(label_bytes) - num_tags
    longest = np.partition(label_bytes, num_shorter)[num_shorter:] if num_shorter else label_bytes
    return None if bound.allows(num_images, int(longest.sum())) else label_bytes


def _blocks(
    image_embeds: FloatArray, counts: IntArray, num_at_once: int
) -> Iterator[tuple[slice, FloatArray]]:
    """Return blocks of images with their views' embeddings."""
    ends = np.concatenate([[0], np.cumsum(counts)])
    for start in range(0, len(counts), num_at_once):
        end = min(start + num_at_once, len(counts))
        yield slice(start, end), image_embeds[ends[start] : ends[end]]


def _within_shares(
    outcomes: Sequence[TagOutcome], sizes: Sequence[float], shares: Sequence[int]
) -> list[TagOutcome]:
    within = list(outcomes)
    for i, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        if size > share:
            within[i] = _too_large(
                f"The tags of this image take more than {share:,} bytes, its share"
            )
    return within


def _too_large(what: str) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"{what} of one response. Lower max_tags, raise confidence_threshold, or send fewer images "
        "in one request."
    )
