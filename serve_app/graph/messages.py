"""What crosses from one deployment to another: frozen dataclasses of numpy arrays and plain values,
nothing else.

Images go as `siglip.inputs.ImageBatch`; prompts as a list of text.
"""

from dataclasses import dataclass
from typing import Any

from serve_app.pipeline.tagger import ScoredBy, TagOutcome, VocabularyCard, VocabularyState
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.outcomes import EncodedImages
from serve_app.siglip.precision import Runtime
from serve_app.tagging.settings import TagOptions


@dataclass(frozen=True, slots=True)
class EncodeReply:
    """An ImageEncoder's answer: one outcome for each image sent, and how many such replicas there
    are now.
    """

    images: EncodedImages
    replicas: int


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Embeddings to be tagged.

    Attributes:
        image_embeds: (V, D) float32, unit norm: every view of every image, each image's whole
            picture first.
        options: B of them, one an image.
        views: B numbers of views, which sum up to V; None where each image has one.
        max_bytes: Most bytes of JSON that the tags of all images may take; None for no bound.
        shares: B numbers: most bytes of JSON that each image's tags may take; None for no bound.
            An image has an equal share of its request's response.
    """

    image_embeds: FloatArray
    options: tuple[TagOptions, ...]
    views: tuple[int, ...] | None = None
    max_bytes: int | None = None
    shares: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class ScoreReply:
    """What a Postprocessor returns for a `ScoreRequest`.

    Attributes:
        outcomes: B of them; none while they are packed.
        scored: What each image was scored against, B of them; None for one that failed.
        packed: The outcomes as `graph/replies.py` packs them where there are many tags.
    """

    outcomes: tuple[TagOutcome, ...]
    scored: tuple[ScoredBy | None, ...]
    packed: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class PackedVocabulary:
    """A vocabulary with its tags, which `graph/replies.py` packs."""

    card: VocabularyCard
    packed: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class EncoderState:
    """What an encoder replica says of itself."""

    runtime: Runtime
    replica: str
    model_loads: int
    batches: int
    items: int


@dataclass(frozen=True, slots=True)
class PostprocessorState:
    """The state of a Postprocessor replica.

    Attributes:
        vocabularies: Names and size of its vocabularies.
        shown: What `GET /v1/config` shows of its live settings.
        refused: Why it rejected the last configuration; None if it did not.
    """

    vocabularies: VocabularyState
    shown: dict[str, Any]
    refused: str | None
