"""The `Tagger` protocol that every face of the service uses, and the cards of what it serves.

Not here: the result of an image (`tagged_image.py`), the pipeline in one process
(`local_tagger.py`), the graph (`graph/preprocessor.py`). No torch.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from serve_app import __version__
from serve_app.config.service import ServiceConfig
from serve_app.errors import TaggerError
from serve_app.pipeline.tagged_image import ImageInput, TaggedImage
from serve_app.siglip.checkpoints import Checkpoint
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.precision import Precision
from serve_app.tagging.options import TagOptions
from serve_app.tagging.settings import TagSettings
from serve_app.tagging.tag_bank import ScoredBank
from serve_app.tagging.vocabulary import Tag


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is served, as `GET /v1/model` shows it; fields have the names of the configuration."""

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
    vocabulary_fingerprint: str
    vocabularies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VocabularyCard:
    """A vocabulary as `GET /v1/vocabularies` lists it.

    Attributes:
        name: Its name in requests.
        default: Whether requests without a vocabulary use it.
        fingerprint: Changes with the checkpoint, the labels and the templates.
        tags: Number of tags.
        categories: Number of tags in each category.
        prompt_templates: Its templates.
        calibrated: Whether it has a calibration.
        confidence_threshold: Minimum confidence, in [0, 1], of tags without a threshold, for
            requests without one.
    """

    name: str
    default: bool
    fingerprint: str
    tags: int
    categories: dict[str, int]
    prompt_templates: tuple[str, ...]
    calibrated: bool
    confidence_threshold: float


@dataclass(frozen=True, slots=True)
class VocabularyDetail:
    """A vocabulary with its tags, as `GET /v1/vocabularies/{name}` shows it."""

    card: VocabularyCard
    tags: tuple[Tag, ...]


class Tagger(Protocol):
    """Something that tags images: in one process, or by a graph of many."""

    async def tag(
        self, images: Sequence[ImageInput], options: TagOptions
    ) -> tuple[TaggedImage, ...]:
        """Tag encoded images; each has its result, which may be an error, at its index.

        Raises:
            InvalidRequest: The options cannot work.
            ServiceError: Nothing could be tagged.
        """

    async def score(self, image_embeds: FloatArray, options: TagOptions) -> tuple[TaggedImage, ...]:
        """Tag stored image embeddings (B, D) float32, unit norm; no pixels are needed.

        Raises:
            InvalidRequest: The options cannot work, or D is not the checkpoint's.
            ServiceError: Nothing could be tagged.
        """

    async def embed_images(
        self, images: Sequence[ImageInput]
    ) -> tuple[FloatArray | TaggerError, ...]:
        """Return one embedding (D,) float32, unit norm, for each encoded image, or why it has none.

        Raises:
            ServiceError: Nothing could be encoded.
        """

    async def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Return embeddings (n, D) float32, unit norm, of texts as they are, without a template.

        Raises:
            ServiceError: They could not be encoded.
        """

    async def vocabularies(self) -> tuple[VocabularyCard, ...]:
        """Return the vocabularies, the default one first.

        Raises:
            Unavailable: A part of the service is not ready.
        """

    async def vocabulary(self, name: str) -> VocabularyDetail:
        """Return a vocabulary with its tags.

        Raises:
            UnknownVocabulary: There is none of that name.
            Unavailable: A part of the service is not ready.
        """

    async def configuration(self) -> dict[str, Any]:
        """Return the configuration as it runs, as `serve_app/config/public.py` shows it.

        Raises:
            Unavailable: A part of the service is not ready.
        """

    async def describe(self) -> ModelCard:
        """Return what is served.

        Raises:
            Unavailable: A part of the service is not ready.
        """


class VocabularyState(NamedTuple):
    """The vocabularies that are scored.

    Attributes:
        default: Name of the default one.
        fingerprint: Fingerprint of the default one.
        labels: Number of labels of the default one.
        names: Names of all.
    """

    default: str
    fingerprint: str
    labels: int
    names: tuple[str, ...]


def make_model_card(
    config: ServiceConfig,
    checkpoint: Checkpoint,
    runtime: Precision,
    batch_size: int,
    vocabularies: VocabularyState,
) -> ModelCard:
    """Return what `GET /v1/model` shows."""
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
        batch_size=batch_size,
        labels=vocabularies.labels,
        vocabulary=vocabularies.default,
        vocabulary_fingerprint=vocabularies.fingerprint,
        vocabularies=vocabularies.names,
    )


def vocabulary_state(settings: TagSettings, default: ScoredBank) -> VocabularyState:
    """Return which vocabularies are scored, given the bank of the default one."""
    return VocabularyState(
        settings.default_vocabulary,
        default.bank.fingerprint,
        len(default.table),
        tuple(settings.vocabularies),
    )


def vocabulary_cards(
    settings: TagSettings, banks: Mapping[str, ScoredBank]
) -> tuple[VocabularyCard, ...]:
    """Return what `GET /v1/vocabularies` lists, the default one first."""
    names = sorted(banks, key=lambda name: name != settings.default_vocabulary)
    return tuple(_card(settings, name, banks[name]) for name in names)


def vocabulary_detail(
    settings: TagSettings, banks: Mapping[str, ScoredBank], name: str
) -> VocabularyDetail:
    """Return what `GET /v1/vocabularies/{name}` shows; raises `UnknownVocabulary`."""
    settings.check_known(name)
    return VocabularyDetail(_card(settings, name, banks[name]), banks[name].bank.vocabulary.tags)


def _card(settings: TagSettings, name: str, scored: ScoredBank) -> VocabularyCard:
    own = scored.bank.vocabulary
    categories = Counter(tag.category for tag in own.tags if tag.category)
    threshold = settings.confidence_threshold
    calibration = settings.vocabularies[name].calibration
    if calibration is not None and settings.selection.score in (None, "calibrated"):
        threshold = calibration.threshold
    return VocabularyCard(
        name=name,
        default=name == settings.default_vocabulary,
        fingerprint=scored.bank.fingerprint,
        tags=len(own.tags),
        categories=dict(categories),
        prompt_templates=own.prompt_templates,
        calibrated=scored.table.lines is not None,
        confidence_threshold=threshold,
    )
