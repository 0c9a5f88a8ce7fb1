"""Memory of the processes without a tower, computed from their budgets. Arithmetic only.

Pods get their memory limits from here (`kuberay/groups.py`), so that no mix of requests within the
configured limits reaches them. The memory of the towers is in `footprint.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.config.limits import Limits

MIB = 2**20
PROCESS_BYTES = 320 * MIB
"""Memory of an idle replica: the interpreter, Ray, numpy, Pillow.

Measured 2026-11 on the demo service: 252 MiB.
"""
DECODES_AT_ONCE = 2
"""Number of images of `limits.max_decode_bytes` each that one Preprocessor decodes at the same
time."""
MAX_WAITING_BYTES = 256 * MIB
"""Prepared pixels that wait for an encoder in one Preprocessor; then requests are refused."""
PARSING_BYTES = 128 * MIB
"""Memory for bodies and responses being parsed or written: a few threads hold their pieces twice
for a moment."""
SCORE_COPIES = 3
"""Number of (images, tags) arrays that scoring and selection hold at the same time."""
CALLS_AT_ONCE = 64
"""Number of calls that one Postprocessor holds: its default `max_ongoing_requests`."""
HEADROOM = 0.15
"""Fraction that is kept free for fragmentation in the allocator."""


@dataclass(frozen=True, slots=True)
class ScoredVocabularies:
    """The vocabularies of a Postprocessor.

    Attributes:
        tags: Number of tags of all registered vocabularies together.
        largest: Number of tags of the largest vocabulary.
        width: Embedding width D.
    """

    tags: int
    largest: int
    width: int


def host_bytes(limits: Limits, sizes: Sequence[int], width: int) -> dict[str, int]:
    """Return the maximum memory in bytes of each replica without a tower, by deployment.

    Args:
        limits: The configuration's limits.
        sizes: Number of tags of each registered vocabulary.
        width: Embedding width D.
    """
    largest = max([*sizes, limits.max_labels_per_request])
    vocabularies = ScoredVocabularies(sum(sizes), largest, width)
    return {
        "preprocessor": preprocessor_bytes(limits.max_held_bytes, limits.max_decode_bytes),
        "postprocessor": postprocessor_bytes(
            vocabularies, limits.max_cached_label_bytes, limits.max_embeddings_per_request
        ),
    }


def preprocessor_bytes(max_held_bytes: int, max_decode_bytes: int) -> int:
    """Return the maximum memory of a Preprocessor in bytes.

    Args:
        max_held_bytes: `limits.max_held_bytes`, for bodies and responses.
        max_decode_bytes: `limits.max_decode_bytes`, for one image.
    """
    budgets = (
        max_held_bytes + DECODES_AT_ONCE * max_decode_bytes + MAX_WAITING_BYTES + PARSING_BYTES
    )
    return _with_headroom(PROCESS_BYTES + budgets)


def postprocessor_bytes(
    vocabularies: ScoredVocabularies, cache_bytes: int, max_embeddings: int
) -> int:
    """Return the maximum memory of a Postprocessor in bytes.

    Args:
        vocabularies: The vocabularies that it scores.
        cache_bytes: `limits.max_cached_label_bytes`.
        max_embeddings: `limits.max_embeddings_per_request`.
    """
    banks = (
        2 * vocabularies.tags * vocabularies.width * 4
    )  # an old and a new one while labels change
    scores = SCORE_COPIES * max_embeddings * vocabularies.largest * 4
    calls = CALLS_AT_ONCE * max_embeddings * vocabularies.width * 4
    return _with_headroom(PROCESS_BYTES + cache_bytes + banks + scores + calls)


def _with_headroom(nbytes: int) -> int:
    return int(nbytes / (1 - HEADROOM))
