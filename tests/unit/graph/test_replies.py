"""Replies with many tags: bounded before they are built, and the same after their way."""

from typing import Any

import numpy as np
import pytest

from serve_app.errors import InferenceFailed, PayloadTooLarge
from serve_app.graph.messages import ScoreReply
from serve_app.graph.replies import (
    TAGS_AT_ONCE,
    is_large,
    packed_vocabulary,
    pickles,
    unpacked,
    unpacked_vocabulary,
)
from serve_app.pipeline.bounded_tags import TAG_BYTES, TagBound, tag_within
from serve_app.pipeline.scorer import ScoredBy, TagScoring
from serve_app.pipeline.tagger import VocabularyCard, VocabularyDetail
from serve_app.siglip.weights import SimilarityHead
from serve_app.tagging.selection import SelectionRule, TagScore
from serve_app.tagging.tag_bank import TagBank, scored_bank, tag_embeddings
from serve_app.tagging.vocabulary import Tag, vocabulary_of_labels

WIDTH = 16
HEAD = SimilarityHead(10.0, -5.0)
RNG = np.random.default_rng(0)
LABELS = [f"label {i:04}" for i in range(400)]
BANK = scored_bank(
    TagBank(
        vocabulary_of_labels(LABELS, ["{label}"]),
        RNG.normal(size=(400, WIDTH)).astype(np.float32),
    )
)
EMBEDS = RNG.normal(size=(900, WIDTH)).astype(np.float32)
ALL = SelectionRule(confidence_threshold=0.0, max_tags=400)
IMAGE_BYTES = 400 * (TAG_BYTES + len(LABELS[0]))


def within(rule: SelectionRule = ALL, num: int = 900, views: Any = None, **bound: Any) -> Any:
    """Tag some embeddings within a bound."""
    scoring = TagScoring(BANK, HEAD, rule, ScoredBy(None, "f", "sigmoid", False))
    blocks = tag_within(EMBEDS[:num], scoring, views, TagBound(**bound))
    return [outcome for block in blocks for outcome in block]


def same(found: Any, expected: Any) -> bool:
    """Return whether tags are the same; those of a block are rounded otherwise."""
    flat = [[tag for tags in outcomes for tag in tags] for outcomes in (found, expected)]
    numbers = [[value for tag in tags for value in tag[1:]] for tags in flat]
    counts = [list(map(len, outcomes)) for outcomes in (found, expected)]
    return counts[0] == counts[1] and bool(np.allclose(*numbers, atol=1e-4))


def test_tags_within_the_bound_are_those_without_one() -> None:
    """Whether the bound holds whatever is chosen, or has to be looked at in blocks."""
    expected = tag_embeddings(EMBEDS, BANK, HEAD, ALL)
    assert same(within(max_bytes=900 * IMAGE_BYTES), expected)
    rule = SelectionRule(confidence_threshold=0.9, max_tags=400)
    few = tag_embeddings(EMBEDS, BANK, HEAD, rule)
    num_tags = sum(map(len, few))
    assert 0 < num_tags < 900 * 200
    assert same(within(rule, max_bytes=num_tags * IMAGE_BYTES // 400), few)


def test_tags_beyond_the_bound_are_refused() -> None:
    """At one byte more than there may be, and before the tags of all blocks are built."""
    with pytest.raises(PayloadTooLarge, match="Lower max_tags"):
        within(max_bytes=900 * IMAGE_BYTES - 1)
    with pytest.raises(PayloadTooLarge):
        within(max_bytes=900 * IMAGE_BYTES, has_raw_scores=True)


def test_images_beyond_their_share_fail_alone() -> None:
    """Others of the same call, of other requests, have their tags."""
    shares = (IMAGE_BYTES, IMAGE_BYTES - 1, IMAGE_BYTES)
    first, second, third = within(num=3, shares=shares)
    expected = tag_embeddings(EMBEDS[:3], BANK, HEAD, ALL)
    assert same([first, third], [expected[0], expected[2]])
    assert isinstance(second, PayloadTooLarge)
    assert "its share" in second.message


def test_views_of_one_image_are_bounded_together() -> None:
    """Three images of one, two and three views."""
    views = (1, 2, 3)
    shares = (IMAGE_BYTES - 1, IMAGE_BYTES, IMAGE_BYTES)
    first, *rest = within(num=6, views=views, shares=shares)
    assert isinstance(first, PayloadTooLarge)
    assert same(rest, tag_embeddings(EMBEDS[:6], BANK, HEAD, ALL, views)[1:])


def test_the_usual_reply_is_bounded_without_a_look_at_its_labels() -> None:
    """64 images of one request, 50 tags each, stay within their shares whatever the labels are."""
    bound = TagBound(shares=(16 * 2**20 // 64,))
    assert bound.allows(1, 50 * (TAG_BYTES + 1_536))


@pytest.mark.parametrize("num_tags", [TAGS_AT_ONCE + 1, 3 * TAGS_AT_ONCE, 3_333])
def test_a_packed_reply_is_the_same_afterwards(num_tags: int) -> None:
    """Rows with none, some and more tags than one pickle holds, and errors in their places."""
    many = tuple(TagScore(f"label {i}", 0.5, float(i)) for i in range(num_tags))
    outcomes = (many[:3], (), InferenceFailed("broken"), many, many[:700], many[:700])
    reply = ScoreReply(outcomes, (None,) * len(outcomes))
    assert is_large(reply)
    sent = ScoreReply((), reply.scored, tuple(pickles(reply.outcomes)))
    assert len(sent.packed) > 2
    back = unpacked(sent)
    assert back.outcomes[:2] + back.outcomes[3:] == outcomes[:2] + outcomes[3:]
    assert isinstance(back.outcomes[2], InferenceFailed)
    assert not is_large(ScoreReply((many[:10],), (None,)))


def test_a_packed_vocabulary_is_the_same_afterwards() -> None:
    """Every tag in its place, with all that is known of it."""
    tags = tuple(Tag(label=f"label {i}", category="c", threshold=0.5) for i in range(2_500))
    card = VocabularyCard("own", True, "f", len(tags), {"c": 2_500}, ("{label}",), False, 0.1)
    detail = VocabularyDetail(card, tags)
    sent = packed_vocabulary(detail)
    assert len(sent.packed) == 3
    assert unpacked_vocabulary(sent) == detail
