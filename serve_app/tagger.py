"""The `Tagger` protocol that every face of the service speaks to, and what goes in and out of it.

Not here: the pipeline in one process (`local_tagger.py`), the graph of many (`graph/preprocessor.py`). No torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serve_app import __version__
from serve_app.config import ServiceConfig
from serve_app.errors import TaggerError
from serve_app.siglip.checkpoints import Checkpoint
from serve_app.siglip.precision import Runtime
from serve_app.tagging.selection import TagScore
from serve_app.tagging.settings import TagOptions

TagOutcome = tuple[TagScore, ...] | TaggerError
"""One image's tags, or why it has none."""


@dataclass(frozen=True, slots=True)
class TagAnswer:
    """What comes back for one request.

    Attributes:
        outcomes: One for each image, in the order they were given.
        vocabulary: Fingerprint of the labels and templates that were scored.
        include_raw_scores: Whether the logits are to be shown.
    """

    outcomes: tuple[TagOutcome, ...]
    vocabulary: str
    include_raw_scores: bool = False


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is served, as `GET /v1/model` shows it; field names are the configuration's where it has them."""

    model: str
    revision: str | None
    version: str
    family: str
    image_size: int | None
    patch_size: int
    max_num_patches: int | None
    context_length: int
    dtype: str
    attention: str
    device: str
    quantization: str
    batch_size: int
    labels: int
    vocabulary: str


class Tagger(Protocol):
    """Something that tags images: in one process, or by a graph of many."""

    async def tag(self, images: Sequence[bytes], options: TagOptions) -> TagAnswer:
        """Tag encoded pictures; one that cannot be read has its error in the answer.

        Raises:
            InvalidRequest: The options cannot work.
            ServiceError: Nothing could be tagged.
        """

    async def describe(self) -> ModelCard:
        """Return what is served.

        Raises:
            Unavailable: A part of the service is not ready.
        """


def make_model_card(config: ServiceConfig, checkpoint: Checkpoint, runtime: Runtime, labels: int, vocabulary: str) -> ModelCard:
    """Gather what `GET /v1/model` shows."""
    return ModelCard(
        model=config.siglip.model_shown,
        revision=checkpoint.revision,
        version=__version__,
        family=checkpoint.family.value,
        image_size=checkpoint.image_size_px,
        patch_size=checkpoint.patch_size_px,
        max_num_patches=None if checkpoint.image_size_px else config.siglip.max_num_patches,
        context_length=checkpoint.context_length,
        dtype=runtime.dtype,
        attention=runtime.attention,
        device=runtime.device,
        quantization=runtime.quantization,
        batch_size=config.siglip.resolved_batch_size,
        labels=labels,
        vocabulary=vocabulary,
    )
