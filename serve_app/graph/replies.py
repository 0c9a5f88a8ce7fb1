"""Packs Postprocessor replies that have many tags.

A million tags take 200 MB and one second to pickle, which would hold the GIL. They are therefore
pickled in parts, in a thread that other requests use in between.

Not here: limits on the size of the tags (`pipeline/bounded_tags.py`).
"""

import asyncio
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace

from serve_app.errors import TaggerError
from serve_app.graph.calls import InnerCalls
from serve_app.graph.messages import PackedVocabulary, ScoreReply, ScoreRequest
from serve_app.pipeline.bounded_tags import TagOutcome
from serve_app.pipeline.tagged_image import TaggedImage
from serve_app.pipeline.tagger import VocabularyDetail
from serve_app.tagging.vocabulary import Tag

TAGS_AT_ONCE = 1_000
"""Number of tags in one pickle, which takes about 1 ms. Replies with fewer tags are not packed."""


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
    """Yield `ScoreReply.packed`: pickled lists of images with tags.

    Each list is short, because pickling holds the GIL. An image with many tags is in several lists.
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
    """Return a vocabulary in short pickles; a single pickle of 20,000 tags takes 0.1 s to read."""
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


async def score_tags(score: InnerCalls, request: ScoreRequest) -> tuple[TaggedImage, ...]:
    """Tag embeddings with a Postprocessor; a large reply is unpacked in a worker thread."""
    reply: ScoreReply = await score("score", request, nbytes=request.image_embeds.nbytes)
    if reply.packed:
        reply = await asyncio.to_thread(unpacked, reply)
    return tuple(map(TaggedImage.of, reply.outcomes, reply.scored))
