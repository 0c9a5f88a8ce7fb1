"""Postprocessor replies with many tags: their size is checked before the tags are built, and they
are packed.

Each tag in a reply is a Python object with a label and scores. A million tags take 200 MB and one
second to pickle. Choosing tags is cheap and gives their number before they are built.
"""

import asyncio
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from serve_app.errors import PayloadTooLarge, TaggerError
from serve_app.graph.calls import InnerCalls
from serve_app.graph.messages import PackedVocabulary, ScoreReply, ScoreRequest
from serve_app.pipeline.tagger import TagOutcome, VocabularyDetail
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.weights import SimilarityHead
from serve_app.tagging.selection import SelectionRule
from serve_app.tagging.tag_bank import ScoredBank, choose_for_embeddings, tag_embeddings
from serve_app.tagging.tag_table import IntArray
from serve_app.tagging.vocabulary import Tag

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
TAGS_AT_ONCE = 1_000
"""Tags in one pickle, which takes about 1 ms. Replies with fewer tags are not packed."""


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
        """Return whether the bound holds for images whose tags take at most `max_image_bytes`
        each.
        """
        if self.max_bytes is not None and num_images * max_image_bytes > self.max_bytes:
            return False
        return self.shares is None or max_image_bytes <= min(self.shares, default=0)


def images_at_once(scored: ScoredBank, rule: SelectionRule) -> int:
    """Return how many images `tag_within` tags in one block."""
    num_tags = min(rule.max_tags, len(scored.table))
    return max(1, min(SCORES_AT_ONCE // len(scored.table), BLOCK_TAGS // num_tags))


def tag_within(
    image_embeds: FloatArray,
    scored: ScoredBank,
    head: SimilarityHead,
    rule: SelectionRule,
    views: Sequence[int] | None,
    bound: TagBound,
) -> Iterator[list[TagOutcome]]:
    """Tag embeddings in blocks; other requests get their turn between blocks.

    See `choose_for_embeddings` for the other arguments. An image whose tags take more than its
    share has `PayloadTooLarge` as its outcome.

    Raises:
        PayloadTooLarge: The tags of all images together take more than `bound.max_bytes`.
    """
    counts = np.ones(len(image_embeds), np.intp) if views is None else np.asarray(views, np.intp)
    num_tags = min(rule.max_tags, len(scored.table))
    label_bytes = _label_bytes(scored, num_tags, len(counts), bound)
    num_bytes = 0
    for rows, embeds in _blocks(image_embeds, counts, images_at_once(scored, rule)):
        block_views = None if views is None else counts[rows].tolist()
        if label_bytes is None:
            yield list(tag_embeddings(embeds, scored, head, rule, block_views))
            continue
        chosen = choose_for_embeddings(embeds, scored, head, rule, block_views)
        images = np.repeat(np.arange(len(chosen.counts)), chosen.counts)
        sizes = np.bincount(images, label_bytes[chosen.tags], minlength=len(chosen.counts))
        num_bytes += int(sizes.sum())
        if bound.max_bytes is not None and num_bytes > bound.max_bytes:
            raise _too_large(f"The tags of all images take more than {bound.max_bytes:,} bytes")
        tags = tag_embeddings(embeds, scored, head, rule, block_views)
        shares = None if bound.shares is None else bound.shares[rows]
        yield list(tags) if shares is None else _within_shares(tags, sizes.tolist(), shares)


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
    return [
        outcome
        if size <= share
        else _too_large(f"The tags of this image take more than {share:,} bytes, its share")
        for outcome, size, share in zip(outcomes, sizes, shares, strict=True)
    ]


def _too_large(what: str) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"{what} of one response. Lower max_tags, raise confidence_threshold, or send fewer images in one request."
    )


def is_large(reply: ScoreReply) -> bool:
    """Return whether a reply has enough tags to be packed before it is sent."""
    num_tags = sum(len(outcome) for outcome in reply.outcomes if isinstance(outcome, tuple))
    return num_tags > TAGS_AT_ONCE


def unpacked(reply: ScoreReply) -> ScoreReply:
    """Return a packed reply with its outcomes."""
    outcomes: list[TagOutcome] = [()] * len(reply.scored)
    for part in reply.packed:
        for row, piece in pickle.loads(part):
            before = outcomes[row]
            both = isinstance(piece, tuple) and isinstance(before, tuple)
            outcomes[row] = before + piece if both else piece
    return replace(reply, outcomes=tuple(outcomes), packed=())


def pickles(outcomes: Sequence[TagOutcome]) -> Iterator[bytes]:
    """Return `ScoreReply.packed`: pickled lists of rows with tags, each short enough not to hold
    the GIL for long.

    A row with many tags is in several lists.
    """
    part: list[tuple[int, TagOutcome]] = []
    num_tags = 0
    for row, outcome in enumerate(outcomes):
        if isinstance(outcome, TaggerError):
            part.append((row, outcome))
            continue
        for start in range(0, len(outcome), TAGS_AT_ONCE):
            tags = outcome[start : start + TAGS_AT_ONCE]
            part.append((row, tags))
            num_tags += len(tags)
            if num_tags >= TAGS_AT_ONCE:
                yield pickle.dumps(part, pickle.HIGHEST_PROTOCOL)
                part = []
                num_tags = 0
    yield pickle.dumps(part, pickle.HIGHEST_PROTOCOL)


def packed_vocabulary(detail: VocabularyDetail) -> PackedVocabulary:
    """Return a vocabulary packed for sending: 20,000 tags in one pickle would take 0.1 s to
    read.
    """
    pickles = [
        pickle.dumps(detail.tags[start : start + TAGS_AT_ONCE], pickle.HIGHEST_PROTOCOL)
        for start in range(0, len(detail.tags), TAGS_AT_ONCE)
    ]
    return PackedVocabulary(detail.card, tuple(pickles))


def unpacked_vocabulary(vocabulary: PackedVocabulary) -> VocabularyDetail:
    """Return a packed vocabulary with its tags."""
    tags: list[Tag] = []
    for part in vocabulary.packed:
        tags += pickle.loads(part)
    return VocabularyDetail(vocabulary.card, tuple(tags))


async def score_tags(score: InnerCalls, request: ScoreRequest) -> ScoreReply:
    """Ask a Postprocessor to tag embeddings, and unpack a large reply in a worker thread."""
    reply: ScoreReply = await score("score", request)
    return await asyncio.to_thread(unpacked, reply) if reply.packed else reply
