"""What the service answers, as frozen models; fields of newer servers that are not known here are
left alone.
"""

import base64
import sys
from array import array
from typing import Annotated, Any

from pydantic import AliasPath, BaseModel, BeforeValidator, ConfigDict, Field

FLOAT32_BYTES = 4


def pack_embedding(row: Any) -> str:
    """Return D numbers as base64 of little-endian float32."""
    numbers = array("f", row)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


def unpack_embedding(value: Any) -> Any:
    """Return the numbers of base64 of little-endian float32; anything else as it is.

    Raises:
        ValueError: It is not base64, or not of whole numbers.
    """
    if not isinstance(value, str):
        return value
    numbers = array("f")
    numbers.frombytes(base64.b64decode(value, validate=True))
    if sys.byteorder == "big":
        numbers.byteswap()
    return tuple(numbers)


Embedding = Annotated[tuple[float, ...], BeforeValidator(unpack_embedding)]
"""(D,) float32, unit norm, as Python's numbers."""


class Answer(BaseModel):
    """Base of every answer. Numbers that are not finite are refused."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, allow_inf_nan=False
    )


class Tag(Answer):
    """One thing that a picture shows.

    Attributes:
        label: As the vocabulary or the request wrote it.
        confidence: In [0, 1]; any number where `score` is `logit`.
        raw_score: The model's logit, where `include_raw_scores` was asked for.
    """

    label: str
    confidence: float
    raw_score: float | None = None


class Tagged(Answer):
    """The tags of one picture or of one embedding, and how they were found.

    Attributes:
        tags: In the order asked for, the best first unless it was another.
        vocabulary: Its name; None for labels of the request.
        vocabulary_fingerprint: Changes with the checkpoint, the labels and how they are said.
        score: What the confidences are.
        model: The checkpoint.
        version: Of the service.
        inference_time_ms: Milliseconds that the service took for the whole request, with all its
            pictures.
        views: How many images were encoded for this one; more than 1 with `quality="high"`.
        embedding: (D,) float32, unit norm, where it was asked for.
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


class Many(Answer):
    """An answer with `results`, each with tags or an error; what is said of them all is merged into
    each by `each`.
    """

    model_config = ConfigDict(extra="allow")

    results: tuple[dict[str, Any], ...]

    def each(self) -> list[dict[str, Any]]:
        """Return the results as if every picture had been asked for alone."""
        return [(self.model_extra or {}) | result for result in self.results]


class VocabularyCard(Answer):
    """A vocabulary as it is listed.

    Attributes:
        name: As requests name it.
        default: Whether it holds where a request names none.
        fingerprint: Changes with the checkpoint, the labels and how they are said.
        tags: How many.
        categories: How many tags each has.
        prompt_templates: In which labels are said.
        calibrated: Whether it has a calibration.
        confidence_threshold: What tags without a threshold of their own need where a request names
            none; None from a service that does not tell.
    """

    name: str
    default: bool
    fingerprint: str
    tags: int
    categories: dict[str, int]
    prompt_templates: tuple[str, ...]
    calibrated: bool
    confidence_threshold: float | None = None


class VocabularyTag(Answer):
    """One tag of a vocabulary; see docs/tagging.md for what its fields do."""

    label: str
    prompt: str | None = None
    aliases: tuple[str, ...] = ()
    category: str | None = None
    parents: tuple[str, ...] = ()
    threshold: float | None = None
    bias: float = 0.0


class Vocabulary(Answer):
    """A vocabulary with its tags; the other fields are those of `VocabularyCard`."""

    name: str
    default: bool
    fingerprint: str
    tags: tuple[VocabularyTag, ...]
    categories: dict[str, int]
    prompt_templates: tuple[str, ...]
    calibrated: bool


class Vocabularies(Answer):
    """The list of them, the default one first."""

    vocabularies: tuple[VocabularyCard, ...]


class ModelCard(Answer):
    """What is served; field names are the configuration's where it has them."""

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


class EmbeddedText(Answer):
    """One entry of an answer to `POST /v1/embeddings`."""

    index: int
    embedding: Embedding


class EmbeddedTexts(Answer):
    """An answer to `POST /v1/embeddings`."""

    data: tuple[EmbeddedText, ...]
