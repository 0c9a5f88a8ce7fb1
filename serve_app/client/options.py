"""The options of a request: their names, their validation, and their encoding."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from serve_app.tagging.choices import Parents, Quality, Score, SortBy

MAX_QUERY_CHARACTERS = 2_000
"""Maximum length of a query string. Longer options are sent in a JSON body, because gateways
truncate URLs at 4,000 to 8,000 characters."""
DEFAULTS: Mapping[str, Any] = {
    "include_labels": (),
    "exclude_labels": (),
    "include_categories": (),
    "exclude_categories": (),
    "quality": "standard",
}
"""Default values, which are not sent; None is a default of every option."""


class ScoreOptions(TypedDict, total=False):
    """How tags are scored and selected; see docs/api.md. The service sets every default."""

    labels: Sequence[str] | None
    prompt_templates: Sequence[str] | None
    vocabulary: str | None
    confidence_threshold: float | None
    max_tags: int | None
    min_tags: int | None
    score: Score | None
    sort_by: SortBy | None
    parents: Parents | None
    include_labels: Sequence[str] | None
    exclude_labels: Sequence[str] | None
    include_categories: Sequence[str] | None
    exclude_categories: Sequence[str] | None
    include_raw_scores: bool | None


class Options(ScoreOptions, total=False):
    """The options of requests with images."""

    quality: Quality | None


Fields = dict[str, Any]
"""Options in the form of a JSON body."""


def fields_of(options: Mapping[str, Any]) -> Fields:
    """Return the options that differ from their defaults.

    Raises:
        TypeError: An option has an unknown name.
    """
    unknown = options.keys() - Options.__optional_keys__
    if unknown:
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    return {
        name: _json_value(name, value)
        for name, value in options.items()
        if value is not None and value != DEFAULTS.get(name)
    }


def as_query(fields: Fields) -> tuple[tuple[str, str], ...] | None:
    """Return options as query parameters, or None if a query string cannot carry them."""
    pairs: list[tuple[str, str]] = []
    for name, value in fields.items():
        if not isinstance(value, list):
            pairs.append((name, str(value).lower() if isinstance(value, bool) else str(value)))
        elif value and all(_fits_query(name, entry) for entry in value):
            pairs += [(name, entry) for entry in value]
        else:
            return None
    characters = sum(len(name) + len(value) for name, value in pairs)
    return tuple(pairs) if characters <= MAX_QUERY_CHARACTERS else None


def _json_value(name: str, value: Any) -> Any:
    """Return a sequence as a list, and any other value unchanged.

    The service splits a string at its commas, except for `prompt_templates`.
    """
    if name == "prompt_templates" and isinstance(value, str):
        return [value]
    return value if isinstance(value, str | int | float) else list(value)


def _fits_query(name: str, entry: str) -> bool:
    """Return whether the service reads an item of a list unchanged from a query string."""
    # the service ignores an empty parameter, and parses one with a bracket as a JSON array
    if not entry.strip() or entry.lstrip().startswith("["):
        return False
    return name == "prompt_templates" or ("," not in entry and entry == entry.strip())
