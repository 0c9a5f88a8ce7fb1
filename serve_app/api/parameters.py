"""The parameters of a request besides its images or embeddings: one model for every transport.

Not here: the bodies that have them (`bodies.py`, `embeddings.py`).
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.requests import Request

from serve_app.api.text_fields import one_or_array, query_pairs, split_list, text_fields
from serve_app.config.limits import Limits
from serve_app.errors import InvalidRequest
from serve_app.tagging.choices import Parents, Quality, Score, SortBy
from serve_app.tagging.options import TagOptions, tag_options
from serve_app.tagging.vocabulary import MAX_LABEL_CHARACTERS
from serve_app.untrusted.problems import key_hint, problem_sentence

MAX_FILTERS = 1_000
"""Labels or categories that one request may include or exclude."""

Listed = Annotated[tuple[str, ...], BeforeValidator(split_list)]
"""Several labels: a list, or one text that is a JSON array or has commas between them."""
Templates = Annotated[tuple[str, ...], BeforeValidator(one_or_array)]
"""Several prompt templates: a list, a text that is a JSON array, or a single template."""
Filter = Annotated[
    tuple[Annotated[str, Field(max_length=MAX_LABEL_CHARACTERS)], ...],
    BeforeValidator(split_list),
    Field(max_length=MAX_FILTERS),
]


class ScoreParameters(BaseModel):
    """How tags are scored and chosen; the default of each is the service's own setting."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: Listed | None = Field(
        None,
        description=(
            "Labels to score instead of the service's own: a list, or one text that is a JSON "
            "array or has commas."
        ),
    )
    vocabulary: str | None = Field(
        None, description="Name of a vocabulary of the service, instead of its default one."
    )
    prompt_templates: Templates | None = Field(
        None, description="Sentences with {label}; several are averaged."
    )
    confidence_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description=(
            "Least confidence of every tag, also of those that have a threshold of their own."
        ),
    )
    max_tags: int | None = Field(None, ge=1, description="Most tags an image.")
    min_tags: int | None = Field(
        None, ge=0, description="The best so many are given even below the threshold."
    )
    score: Score | None = Field(
        None,
        description="What confidence is: sigmoid, calibrated, margin, softmax, or the bare logit.",
    )
    sort_by: SortBy | None = Field(None, description="Order of the tags.")
    parents: Parents | None = Field(
        None,
        description="Give broader tags their narrower ones' score, or leave them out beside them.",
    )
    include_labels: Filter | None = Field(
        None, description="Only these labels, and those of include_categories."
    )
    exclude_labels: Filter | None = Field(None, description="Never these labels.")
    include_categories: Filter | None = Field(
        None, description="Only labels of these categories, and include_labels."
    )
    exclude_categories: Filter | None = Field(None, description="Never labels of these categories.")
    include_raw_scores: bool | None = Field(
        None, description="Also give the model's logit of each tag."
    )

    def options(self, limits: Limits) -> TagOptions:
        """Return the options, the labels and templates checked; raises `InvalidRequest`."""
        requested = self.model_dump(include=_OPTION_FIELDS, exclude_none=True)
        return tag_options(**requested, max_labels=limits.max_labels_per_request)


class TagParameters(ScoreParameters):
    """Parameters of images: how tags are scored and chosen, and how images are encoded."""

    quality: Quality = Field(
        "standard",
        description="high: also encode overlapping tiles, for small things; costs 5 to 9 images.",
    )
    returned: Literal["tags", "embedding"] = Field(
        "tags", alias="return", description="embedding: give the image's embedding too."
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="Of embeddings: numbers, or base64 of little-endian float32."
    )


_OPTION_FIELDS = {"labels", "prompt_templates", *TagOptions._fields}
"""Fields that are arguments of `tag_options`."""

Model = TypeVar("Model", bound=BaseModel)

MAX_PROBLEMS = 5
"""Problems that one error message names."""
_UNSHOWN = frozenset({"is_instance_of"})
"""Error types of alternatives that only exist within the service, such as `LongText` beside
`str`."""


def query_fields(request: Request) -> dict[str, Any]:
    """Return the parameters of a query string; raises `InvalidRequest` for too many fields."""
    return text_fields(query_pairs(request), TagParameters)


def validated(model: type[Model], content: dict[str, Any]) -> Model:
    """Check a request's fields. A field that is null has its default.

    Raises:
        InvalidRequest: One sentence for each of the first problems, with the field and the nearest
            known one.
    """
    known = {field.alias or name for name, field in model.model_fields.items()}
    fields = {
        name: value for name, value in content.items() if value is not None or name not in known
    }
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        # a list of 1,000 values may have as many errors; what is not shown is not built
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        shown = [problem for problem in problems if problem["type"] not in _UNSHOWN][:MAX_PROBLEMS]
        raise InvalidRequest(" ".join(_sentence(problem, model) for problem in shown)) from error


def _sentence(problem: Any, model: type[BaseModel]) -> str:
    name = str(problem["loc"][0])[:60] if problem["loc"] else "The request"
    if problem["type"] == "extra_forbidden":
        known = [field.alias or name for name, field in model.model_fields.items()]
        return f"{name!r} is not a parameter; {key_hint(name, known)}"
    position = "".join(f"[{part}]" for part in problem["loc"][1:] if isinstance(part, int))
    return problem_sentence(problem, f"{name}{position}")
