"""Memory of the processes that hold no tower: what their budgets add up to. Arithmetic only.

Pods get their memory limits from here (`kuberay/groups.py`), so that no mix of requests which the limits of the
configuration allow reaches them. The towers' memory is in `footprint.py`.
"""

from dataclasses import dataclass

MIB = 2**20
PROCESS_BYTES = 320 * MIB
"""A replica without requests: the interpreter, Ray, numpy, Pillow. Measured 2026-11 on the demo service: 252 MiB."""
DECODES_AT_ONCE = 2
"""Images of `limits.max_decode_bytes` that one Preprocessor decodes at the same time."""
MAX_WAITING_BYTES = 256 * MIB
"""Prepared pixels that wait for an encoder in one Preprocessor; then requests are refused."""
PARSING_BYTES = 128 * MIB
"""Bodies and responses that are being parsed or written: their pieces are held twice for a moment, in a few threads."""
SCORE_COPIES = 3
"""Arrays of (images, tags) that scoring and selection hold at the same time."""
CALLS_AT_ONCE = 64
"""Calls that one Postprocessor holds: its default `max_ongoing_requests`."""
HEADROOM = 0.15
"""Part that is kept free for the allocator's fragments."""


@dataclass(frozen=True, slots=True)
class ScoredVocabularies:
    """What a Postprocessor scores with.

    Attributes:
        tags: Of all registered vocabularies together.
        largest: Tags of the largest.
        width: D, of an embedding.
    """

    tags: int
    largest: int
    width: int


def preprocessor_bytes(max_held_bytes: int, max_decode_bytes: int) -> int:
    """Return the most memory of a Preprocessor in bytes.

    Args:
        max_held_bytes: `limits.max_held_bytes`, of bodies and responses.
        max_decode_bytes: `limits.max_decode_bytes`, of one image.
    """
    budgets = max_held_bytes + DECODES_AT_ONCE * max_decode_bytes + MAX_WAITING_BYTES + PARSING_BYTES
    return _with_headroom(PROCESS_BYTES + budgets)


def postprocessor_bytes(vocabularies: ScoredVocabularies, cache_bytes: int, max_embeddings: int) -> int:
    """Return the most memory of a Postprocessor in bytes.

    Args:
        vocabularies: That it scores with.
        cache_bytes: `limits.max_cached_label_bytes`.
        max_embeddings: `limits.max_embeddings_per_request`.
    """
    banks = 2 * vocabularies.tags * vocabularies.width * 4  # an old and a new one while labels change
    scores = SCORE_COPIES * max_embeddings * vocabularies.largest * 4
    calls = CALLS_AT_ONCE * max_embeddings * vocabularies.width * 4
    return _with_headroom(PROCESS_BYTES + cache_bytes + banks + scores + calls)


def _with_headroom(nbytes: int) -> int:
    return int(nbytes / (1 - HEADROOM))
