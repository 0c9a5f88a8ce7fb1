"""What crosses from one deployment to another: frozen dataclasses of numpy arrays and plain values, nothing else.

Images go as `siglip.inputs.ImageBatch`; prompts as a list of text.
"""

from dataclasses import dataclass

from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.outcomes import EncodedImages
from serve_app.siglip.precision import Runtime
from serve_app.tagger import TagOutcome
from serve_app.tagging.settings import TagOptions


@dataclass(frozen=True, slots=True)
class EncodeReply:
    """An ImageEncoder's answer: one outcome for each image sent, and how many such replicas there are now."""

    images: EncodedImages
    replicas: int


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Embeddings to be tagged: `image_embeds` (B, D) float32, unit norm, and B options, one an image."""

    image_embeds: FloatArray
    options: tuple[TagOptions, ...]


@dataclass(frozen=True, slots=True)
class ScoreReply:
    """A Postprocessor's answer: B outcomes, and what they were scored against.

    Attributes:
        outcomes: Tags, or why there are none.
        vocabularies: B fingerprints of the labels and templates.
        include_raw_scores: Whether the configuration asks for logits in answers.
    """

    outcomes: tuple[TagOutcome, ...]
    vocabularies: tuple[str, ...]
    include_raw_scores: bool


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

    vocabulary: str
    labels: int
    refused: str | None
