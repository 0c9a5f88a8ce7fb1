"""What crosses from one deployment to another: frozen dataclasses of numpy arrays and plain values, nothing else.

Images go as `siglip.inputs.ImageBatch`; prompts as a list of text.
"""

from dataclasses import dataclass

from serve_app.shown import LiveShown
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.outcomes import EncodedImages
from serve_app.siglip.precision import Runtime
from serve_app.tagger import ScoredBy, TagOutcome, VocabularyState
from serve_app.tagging.settings import TagOptions


@dataclass(frozen=True, slots=True)
class EncodeReply:
    """An ImageEncoder's answer: one outcome for each image sent, and how many such replicas there are now."""

    images: EncodedImages
    replicas: int


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Embeddings to be tagged.

    Attributes:
        image_embeds: (V, D) float32, unit norm: every view of every image, each image's whole picture first.
        options: B of them, one an image.
        views: B numbers of views, which sum up to V; None where each image has one.
    """

    image_embeds: FloatArray
    options: tuple[TagOptions, ...]
    views: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class ScoreReply:
    """A Postprocessor's answer: B outcomes, and what each was scored against (None for one that failed)."""

    outcomes: tuple[TagOutcome, ...]
    scored: tuple[ScoredBy | None, ...]


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
    """What a Postprocessor replica says of itself; `refused` is why the last configuration was not taken, if it was not."""

    vocabularies: VocabularyState
    shown: LiveShown
    refused: str | None
