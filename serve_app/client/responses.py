"""The service's responses as frozen models, which ignore the fields that newer services add."""

import base64
import sys
from array import array
from typing import Annotated, Any

from pydantic import AliasPath, BaseModel, BeforeValidator, ConfigDict, Field


def pack_embedding(row: Any) -> str:
    """Return D numbers as base64 of little-endian float32."""
    numbers = array("f", row)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


def unpack_embedding(value: Any) -> Any:
    """Decode base64 of little-endian float32; return any value that is not a string unchanged.

    Raises:
        ValueError: The string is not base64, or its length is not a multiple of 4 bytes.
    """
    if not isinstance(value, str):
        return value
    numbers = array("f")
    numbers.frombytes(base64.b64decode(value, validate=True))
    if sys.byteorder == "big":
        numbers.byteswap()
    return tuple(numbers)


Embedding = Annotated[tuple[float, ...], BeforeValidator(unpack_embedding)]
"""(D,) float32, unit norm, as a tuple of Python floats."""


class ResponseModel(BaseModel):
    """Base class of the response models; it rejects infinite numbers and NaN."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, allow_inf_nan=False
    )


class Tag(ResponseModel):
    """One tag of an image.

    Attributes:
        label: The label, spelled as in the vocabulary or the request.
        confidence: In [0, 1]; unbounded if `score` is `logit`.
        raw_score: The model's logit, if the request set `include_raw_scores`.
    """

    label: str
    confidence: float
    raw_score: float | None = None


class Tagged(ResponseModel):
    """The tags of one image or of one embedding, and how they were computed.

    Attributes:
        tags: In the requested order; by default, the best tag comes first.
        vocabulary: Name of the vocabulary; None if the request brought its own labels.
        vocabulary_fingerprint: Changes with the checkpoint, the labels and the prompts.
        score: The kind of score that the confidences are.
        model: The checkpoint.
        version: Version of the service.
        inference_time_ms: Milliseconds that the service spent on the whole request, which may
            contain several images.
        views: Number of images that were encoded for this one; more than 1 with `quality="high"`.
        embedding: (D,) float32, unit norm; None unless it was requested.
    """

    tags: tuple[Tag, ...]
    vocabulary: str | None = None
    vocabulary_fingerprint: str
    score: str
    model: str
    version: str
    inference_time_ms: float
    views: int = Field(1, validation_alias=AliasPath("metadata", "views"))
    embedding: Embedding | None = Field(None, repr=False)


class MultiResponse(ResponseModel):
    """A response with a list of results, each of which has tags or an error."""

    model_config = ConfigDict(extra="allow")

    results: tuple[dict[str, Any], ...]

    def merged_results(self) -> list[dict[str, Any]]:
        """Return each result merged with the fields that the whole response shares."""
        return [(self.model_extra or {}) | result for result in self.results]


class VocabularyCard(ResponseModel):
    """Summary of a vocabulary, as the list of vocabularies shows it.

    Attributes:
        name: The name that requests use.
        default: Whether requests that name no vocabulary use this one.
        fingerprint: Changes with the checkpoint, the labels and the prompts.
        tags: Number of tags.
        categories: Number of tags in each category.
        prompt_templates: Templates that turn a label into a prompt.
        calibrated: Whether the vocabulary has a calibration.
        confidence_threshold: Default threshold for tags without their own; None if the service
            does not report it.
    """

    name: str
    default: bool
    fingerprint: str
    tags: int
    categories: dict[str, int]
    prompt_templates: tuple[str, ...]
    calibrated: bool
    confidence_threshold: float | None = None


class VocabularyTag(ResponseModel):
    """One tag of a vocabulary; docs/tagging.md explains its fields."""

    label: str
    prompt: str | None = None
    aliases: tuple[str, ...] = ()
    category: str | None = None
    parents: tuple[str, ...] = ()
    threshold: float | None = None
    bias: float = 0.0


class Vocabulary(ResponseModel):
    """A vocabulary with its tags; see `VocabularyCard` for the other fields."""

    name: str
    default: bool
    fingerprint: str
    tags: tuple[VocabularyTag, ...]
    categories: dict[str, int]
    prompt_templates: tuple[str, ...]
    calibrated: bool


class Vocabularies(ResponseModel):
    """The list of vocabularies; the default one comes first."""

    vocabularies: tuple[VocabularyCard, ...]


class ModelCard(ResponseModel):
    """The model that the service runs; fields have the same names as in the configuration."""

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


class EmbeddedText(ResponseModel):
    """One entry of a response to `POST /v1/embeddings`."""

    index: int
    embedding: Embedding


class EmbeddedTexts(ResponseModel):
    """A response to `POST /v1/embeddings`."""

    data: tuple[EmbeddedText, ...]
