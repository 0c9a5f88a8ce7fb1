"""What may be asked for besides the pictures, checked before anything is sent, and how it
travels.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from serve_app.tagging.options import Quality
from serve_app.tagging.scores import Score
from serve_app.tagging.selection import Parents, SortBy

MAX_QUERY_CHARACTERS = 2_000
"""Longer options travel in a body of JSON: gateways cut addresses off at some 4,000 to 8,000
characters."""


class ScoreOptions(TypedDict, total=False):
    """How tags are scored and chosen; docs/api.md says what each does.

    What is left out is the service's own setting.
    """

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
    """The same for pictures, and how they are looked at."""

    quality: Quality | None


_DEFAULTS: dict[str, Any] = {
    "include_labels": (),
    "exclude_labels": (),
    "include_categories": (),
    "exclude_categories": (),
    "quality": "standard",
}
"""Values that are not sent; the default of every other option is None."""
Fields = dict[str, Any]
"""Options as they stand in a body of JSON."""


def fields_of(options: Mapping[str, Any]) -> Fields:
    """Return what was asked for, without what is a default anyway; None counts as left out.

    Raises:
        TypeError: There is no option of that name.
    """
    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:
        raise TypeError(f"there is no option {', '.join(sorted(unknown))}")
    return {
        name: _listed(name, options[name])
        for name in Options.__annotations__
        if options.get(name) is not None and options[name] != _DEFAULTS.get(name)
    }


def as_query(fields: Fields) -> tuple[tuple[str, str], ...] | None:
    """Return the options as a query string's parameters, or None if they are too long or would be
    read differently.
    """
    pairs: list[tuple[str, str]] = []
    for name, value in fields.items():
        if not isinstance(value, list):
            pairs.append((name, str(value).lower() if isinstance(value, bool) else str(value)))
        elif value and all(_survives(name, entry) for entry in value):
            pairs += [(name, entry) for entry in value]
        else:
            return None
    return (
        tuple(pairs)
        if sum(len(name) + len(value) for name, value in pairs) <= MAX_QUERY_CHARACTERS
        else None
    )


def _listed(name: str, value: Any) -> Any:
    """Return a sequence as a list; one text with commas is left to the service, which parts it."""
    if name == "prompt_templates" and isinstance(value, str):
        return [value]
    return value if isinstance(value, str | int | float) else list(value)


def _survives(name: str, entry: str) -> bool:
    """Return whether the service reads an item of a list as it is, even if it is the only one."""
    if not entry.strip() or entry.lstrip().startswith("["):  # nothing, or a JSON array
        return False
    return name == "prompt_templates" or ("," not in entry and entry == entry.strip())
