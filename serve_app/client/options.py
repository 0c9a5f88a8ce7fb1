"""The options of a request, checked before anything is sent, and how they are sent."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from serve_app.tagging.choices import Parents, Quality, Score, SortBy

MAX_QUERY_CHARACTERS = 2_000
"""Longer options are sent in a JSON body: gateways truncate addresses at 4,000 to 8,000
characters."""
DEFAULTS: Mapping[str, Any] = {
    "include_labels": (),
    "exclude_labels": (),
    "include_categories": (),
    "exclude_categories": (),
    "quality": "standard",
}
"""Values that mean the same as no value, besides None."""


class ScoreOptions(TypedDict, total=False):
    """How tags are scored and selected; see docs/api.md. Every default is the service's setting."""

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
    """The options for images."""

    quality: Quality | None


Fields = dict[str, Any]
"""Options as they are written in a JSON body."""


def fields_of(options: Mapping[str, Any]) -> Fields:
    """Return the options that differ from their defaults.

    Raises:
        TypeError: There is no option of that name.
    """
    unknown = options.keys() - Options.__optional_keys__
    if unknown:
        raise TypeError(f"there is no option {', '.join(sorted(unknown))}")
    return {
        name: _listed(name, value)
        for name, value in options.items()
        if value is not None and value != DEFAULTS.get(name)
    }


def as_query(fields: Fields) -> tuple[tuple[str, str], ...] | None:
    """Return options as query parameters, or None if they are too long or would be misread."""
    pairs: list[tuple[str, str]] = []
    for name, value in fields.items():
        if not isinstance(value, list):
            pairs.append((name, str(value).lower() if isinstance(value, bool) else str(value)))
        elif value and all(_survives(name, entry) for entry in value):
            pairs += [(name, entry) for entry in value]
        else:
            return None
    characters = sum(len(name) + len(value) for name, value in pairs)
    return tuple(pairs) if characters <= MAX_QUERY_CHARACTERS else None


def _listed(name: str, value: Any) -> Any:
    """Return a sequence as a list; a text with commas is split by the service."""
    if name == "prompt_templates" and isinstance(value, str):
        return [value]
    return value if isinstance(value, str | int | float) else list(value)


def _survives(name: str, entry: str) -> bool:
    """Return whether the service reads an item of a list as it is, even if there is no other."""
    if not entry.strip() or entry.lstrip().startswith("["):  # nothing, or a JSON array
        return False
    return name == "prompt_templates" or ("," not in entry and entry == entry.strip())
