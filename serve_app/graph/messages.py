"""Messages between deployments: frozen dataclasses of numpy arrays and plain values.

Images are sent as `siglip.inputs.ImageBatch`, prompts as a list of text.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve_app.graph.calls import DEFAULT_MESSAGE_BYTES
from serve_app.pipeline.bounded_tags import TagOutcome
from serve_app.pipeline.scorer import ScoredBy
from serve_app.pipeline.tagger import VocabularyCard, VocabularyState
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.outcomes import EncodedImages
from serve_app.siglip.precision import Precision
from serve_app.tagging.options import TagOptions


def max_message_bytes() -> int:
    """Return the maximum size in bytes of the pixels or embeddings in one message.

    This is Serve's limit minus a tenth for the rest of the message.
    """
    limit = int(os.environ.get("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", DEFAULT_MESSAGE_BYTES))
    return limit * 9 // 10


@dataclass(frozen=True, slots=True)
class EncodeReply:
    """An ImageEncoder's reply: the outcome of each image, and the current number of replicas."""

    images: EncodedImages
    replicas: int


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A request to tag embeddings.

    Images of one request share one `TagOptions` object, which is pickled only once.

    Attributes:
        image_embeds: (V, D) float32, unit norm: every view of every image, whole images first.
        options: Options of each of the B images.
        views: B numbers of views, which sum up to V; None if each image has one.
        max_bytes: Limit on the JSON bytes of the tags of all images; None for no limit.
        shares: B limits on the JSON bytes of each image's tags; None for no limit. The images of a
            request have equal shares of its response.
    """

    image_embeds: FloatArray
    options: tuple[TagOptions, ...]
    views: tuple[int, ...] | None = None
    max_bytes: int | None = None
    shares: tuple[int, ...] | None = None

    def part(self, images: Sequence[int]) -> "ScoreRequest":
        """Return the request for some of its images, selected by their ascending indices."""
        num_images = len(self.options)
        if len(images) == num_images:
            return self
        counts = np.ones(num_images, np.intp) if self.views is None else np.asarray(self.views)
        is_kept = np.isin(np.arange(num_images), images)
        return ScoreRequest(
            self.image_embeds[np.repeat(is_kept, counts)],
            tuple(self.options[i] for i in images),
            None if self.views is None else tuple(self.views[i] for i in images),
            self.max_bytes,
            None if self.shares is None else tuple(self.shares[i] for i in images),
        )


@dataclass(frozen=True, slots=True)
class ScoreReply:
    """A Postprocessor's reply to a `ScoreRequest`.

    Attributes:
        outcomes: Tags or error of each of the B images; empty if they are packed.
        scored: What each of the B images was scored against; None for an image that failed.
        packed: The outcomes, packed by `graph/replies.py` if there are many tags.
    """

    outcomes: tuple[TagOutcome, ...]
    scored: tuple[ScoredBy | None, ...]
    packed: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class PackedVocabulary:
    """A vocabulary with its tags, which are packed by `graph/replies.py`."""

    card: VocabularyCard
    packed: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class EncoderState:
    """The state of an encoder replica."""

    runtime: Precision
    replica: str
    model_loads: int
    batches: int
    items: int


@dataclass(frozen=True, slots=True)
class PostprocessorState:
    """The state of a Postprocessor replica.

    Attributes:
        vocabularies: Names and size of its vocabularies.
        shown: Its live settings as `GET /v1/config` shows them.
        refused: Why it refused the last configuration; None if it accepted it.
    """

    vocabularies: VocabularyState
    shown: dict[str, Any]
    refused: str | None
