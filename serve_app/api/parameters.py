"""What a request may ask for besides its images or embeddings: one model for every transport, checked once.

Not here: the bodies that they come in (`bodies.py`, `embeddings.py`).
"""

import difflib
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.requests import Request

from serve_app.api.long_texts import LONG_TEXT_BYTES, LongText
from serve_app.config import Limits
from serve_app.errors import InvalidRequest
from serve_app.tagging.prompts import DEFAULT_TEMPLATE, check_templates
from serve_app.tagging.scores import Score
from serve_app.tagging.selection import Parents, SortBy
from serve_app.tagging.settings import Quality, TagOptions
from serve_app.tagging.vocabulary import MAX_LABEL_CHARACTERS, make_vocabulary

MAX_FILTERS = 1_000
"""Labels or categories that one request may include or exclude."""
MAX_TEXT_ITEMS = 4_000
"""Items of one text with commas, empty ones included; counted before the text is split."""
MAX_QUERY_FIELDS = 2_000
"""Fields of a query string; `labels` may be repeated for each label."""


def split_commas(value: Any) -> Any:
    """Split a text with commas into its items; any other value, such as a list, stays as it is.

    Raises:
        ValueError: The text has more than `MAX_TEXT_ITEMS` items.
    """
    if isinstance(value, LongText):
        raise ValueError(f"a text of more than {LONG_TEXT_BYTES:,} bytes is not taken; send a list")
    if not isinstance(value, str):
        return value
    if value.count(",") >= MAX_TEXT_ITEMS:
        raise ValueError(f"a text with commas holds at most {MAX_TEXT_ITEMS:,} items; send fewer")
    return [part.strip() for part in value.split(",") if part.strip()]


Listed = Annotated[tuple[str, ...], BeforeValidator(split_commas)]
"""Several labels: a list, or one text with commas."""
Filter = Annotated[
    tuple[Annotated[str, Field(max_length=MAX_LABEL_CHARACTERS)], ...], BeforeValidator(split_commas), Field(max_length=MAX_FILTERS)
]


class ScoreParameters(BaseModel):
    """How tags are scored and chosen; what is left out is the service's own setting."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: Listed | None = Field(None, description="Labels to score instead of the service's own: a list, or one text with commas.")
    vocabulary: str | None = Field(None, description="Name of a vocabulary of the service, instead of its default one.")
    prompt_templates: tuple[str, ...] | None = Field(None, description="Sentences with {label}; several are averaged.")
    confidence_threshold: float | None = Field(
        None, ge=0, le=1, description="Least confidence of every tag, also of those that have a threshold of their own."
    )
    max_tags: int | None = Field(None, ge=1, description="Most tags an image.")
    min_tags: int | None = Field(None, ge=0, description="The best so many are given even below the threshold.")
    score: Score | None = Field(None, description="What confidence is: sigmoid, calibrated, margin, softmax, or the bare logit.")
    sort_by: SortBy | None = Field(None, description="Order of the tags.")
    parents: Parents | None = Field(None, description="Give broader tags their narrower ones' score, or leave them out beside them.")
    include_labels: Filter | None = Field(None, description="Only these labels, and those of include_categories.")
    exclude_labels: Filter | None = Field(None, description="Never these labels.")
    include_categories: Filter | None = Field(None, description="Only labels of these categories, and include_labels.")
    exclude_categories: Filter | None = Field(None, description="Never labels of these categories.")
    include_raw_scores: bool | None = Field(None, description="Also give the model's logit of each tag.")

    def options(self, limits: Limits) -> TagOptions:
        """Return what was asked for, its labels and templates checked; raises `InvalidRequest`."""
        if self.prompt_templates is not None:
            check_templates(self.prompt_templates)
        if self.labels is not None:
            check_label_count(len(self.labels), limits)
            make_vocabulary(self.labels, self.prompt_templates or (DEFAULT_TEMPLATE,), limits.max_labels_per_request)
        return TagOptions(**self.model_dump(include=_OPTION_FIELDS, exclude_none=True))


class TagParameters(ScoreParameters):
    """The same for images, and how they are encoded."""

    quality: Quality = Field("standard", description="high: also encode overlapping tiles, for small things; costs 5 to 9 images.")
    returned: Literal["tags", "embedding"] = Field("tags", alias="return", description="embedding: give the image's embedding too.")
    encoding_format: Literal["float", "base64"] = Field("float", description="Of embeddings: numbers, or base64 of little-endian float32.")


_OPTION_FIELDS = set(TagOptions._fields)
LIST_FIELDS = {name for name, field in ScoreParameters.model_fields.items() if name.endswith(("labels", "_categories"))}
"""Fields that may be repeated in a query or a form, or hold commas."""

Model = TypeVar("Model", bound=BaseModel)


def check_label_count(num_labels: int, limits: Limits) -> None:
    """Raise `InvalidRequest` for more labels than one request may have, repeated ones included."""
    if num_labels > limits.max_labels_per_request:
        raise InvalidRequest(f"There are {num_labels:,} labels; at most {limits.max_labels_per_request:,} are taken in one request.")


def query_fields(request: Request) -> dict[str, Any]:
    """Return the parameters of a query string.

    Raises:
        InvalidRequest: It has too many fields, or a field too many items.
    """
    fields: dict[str, Any] = {}
    query: bytes = request.scope.get("query_string", b"")
    if not query:
        return fields
    if query.count(b"&") >= MAX_QUERY_FIELDS:
        raise InvalidRequest(f"The query string has more than {MAX_QUERY_FIELDS:,} fields; send labels in the body.")
    for name, value in request.query_params.multi_items():
        add_field(fields, name, value)
    return fields


def add_field(fields: dict[str, Any], name: str, value: str) -> None:
    """Add a text field. Labels and templates may be repeated; labels may hold commas.

    Raises:
        InvalidRequest: The text has too many items.
    """
    if name in LIST_FIELDS:
        try:
            fields.setdefault(name, []).extend(split_commas(value))
        except ValueError as error:
            raise InvalidRequest(f"{name}: {error}.") from error
    elif name == "prompt_templates":
        fields.setdefault(name, []).append(value)
    else:
        fields[name] = value


def validated(model: type[Model], content: dict[str, Any]) -> Model:
    """Check a request's fields.

    Raises:
        InvalidRequest: One sentence for each of the first problems, with the field and the nearest known one.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        # a list of 1,000 values may have as many errors; what is not shown is not built
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise InvalidRequest(" ".join(_sentence(problem, model) for problem in problems[:5])) from error


def _sentence(problem: Any, model: type[BaseModel]) -> str:
    name = str(problem["loc"][0])[:60] if problem["loc"] else "The request"
    if problem["type"] == "extra_forbidden":
        known = [field.alias or name for name, field in model.model_fields.items()]
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known)}."
        return f"{name!r} is not a parameter; {hint}"
    return f"{name}: {problem['msg'].removeprefix('Value error, ')}."
