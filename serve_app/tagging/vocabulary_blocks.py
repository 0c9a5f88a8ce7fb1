"""Vocabularies as YAML or JSON: a list of tags, or a block with tags and prompts.

Not here: finding out which format a file has (`vocabulary_files.py`), checks of the tags together
(`vocabulary_checks.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, ValidationError

from serve_app.errors import ConfigError
from serve_app.tagging.lined_yaml import LinedYaml, Place
from serve_app.tagging.vocabulary import Tag, TagEntry
from serve_app.untrusted.nulls import NullIsDefault
from serve_app.untrusted.problems import (
    MAX_QUOTED,
    key_hint,
    problem_sentence,
    quoted,
    raise_problems,
)

NEEDS_TEXT = ("string_type", "model_type", "model_attributes_type", "dict_type", "missing")
"""Pydantic error types raised for values that YAML does not read as text."""


class _File(NullIsDefault):
    """The YAML or JSON form."""

    model_config = ConfigDict(extra="forbid")

    tags: tuple[TagEntry, ...]
    prompt_templates: tuple[str, ...] | None = None
    background_prompts: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A tag and where it was read, such as `general.yaml:17`."""

    tag: Tag
    where: str


@dataclass(frozen=True, slots=True)
class VocabularyFile:
    """The content of a file: its tags, and its templates and background prompts if it has any."""

    entries: tuple[Entry, ...]
    prompt_templates: tuple[str, ...] | None = None
    background_prompts: tuple[str, ...] | None = None


def read_blocks(content: LinedYaml, source: str) -> VocabularyFile:
    """Return the vocabulary in a YAML or JSON document.

    Args:
        content: The document; JSON has no lines.
        source: Name of the file in messages.

    Raises:
        ConfigError: One line for each problem, with the line and the reason.
    """
    is_list = isinstance(content.data, list)
    data = {"tags": content.data} if is_list else content.data
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: holds neither a list of labels nor a block with tags.")
    prefix: Place = () if is_list else ("tags",)
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        raise_problems(
            [_described(problem, content, is_list, source) for problem in error.errors()]
        )
        raise
    entries = tuple(
        Entry(tag, _where(content, (*prefix, i), source)) for i, tag in enumerate(file.tags)
    )
    return VocabularyFile(entries, file.prompt_templates, file.background_prompts)


def inline_entries(
    labels: Sequence[Any], where: str, content: LinedYaml = LinedYaml(None), source: str = ""
) -> tuple[Entry, ...]:
    """Return the tags of a list in the configuration itself.

    Args:
        labels: The list.
        where: Its key, for messages.
        content: The list as the file has it; empty where the configuration was not read from a
            file.
        source: Name of the file in messages.

    Raises:
        ConfigError: One of them is neither a label nor a block of a tag's keys.
    """
    entries: list[Entry] = []
    problems: list[str] = []
    for i, value in enumerate(labels):
        try:
            tag = _File.model_validate({"tags": [value]}).tags[0]
        except ValidationError as error:
            for problem in error.errors():
                place = (i, *_place_of(problem)[2:])
                sentence = _unquoted(problem, content, place) or sentence_of(problem)
                problems.append(
                    f"{_inline_where(content, place, source)}{where}[{i + 1}]: {sentence}"
                )
        else:
            entries.append(Entry(tag, f"{_inline_where(content, (i,), source)}{where}[{i + 1}]"))
    raise_problems(problems)
    return tuple(entries)


def sentence_of(problem: Any) -> str:
    """Return what is wrong with one value, from pydantic's description of it."""
    fields = (*Tag.model_fields, *_File.model_fields)
    key = next((str(part) for part in reversed(problem["loc"]) if part in fields), "")
    match problem["type"]:
        case "extra_forbidden":
            unknown = str(problem["loc"][-1])[:MAX_QUOTED]
            return f"unknown key {unknown}; {key_hint(unknown, fields)}"
        case "string_type":
            return f"{key} is {quoted(problem['input'])}, which is not text; put it in quotes."
        case "tuple_type":
            return f"{key} must be a list, such as [{str(problem['input'])[:MAX_QUOTED]}]."
        case "model_type" | "model_attributes_type" | "dict_type":
            given = quoted(problem["input"])
            return (
                f"{given} is neither a label nor a block of a tag's keys; a label that looks like "
                "a number needs quotes."
            )
        case _:
            return problem_sentence(problem, key or str(problem["loc"][-1]))


def _described(problem: Any, content: LinedYaml, is_list: bool, source: str) -> str:
    place = _place_of(problem)
    place = place[1:] if is_list else place
    sentence = _unquoted(problem, content, place) or sentence_of(problem)
    return f"{_where(content, place, source)}: {sentence}"


def _unquoted(problem: Any, content: LinedYaml, place: Place) -> str | None:
    """Return the sentence about a value that YAML does not read as text, if that is the problem."""
    if problem["type"] not in NEEDS_TEXT or place not in content.unquoted:
        return None
    key = f"{place[-1]}: " if place and isinstance(place[-1], str) else ""
    return f"{key}{content.unquoted[place]}."


def _inline_where(content: LinedYaml, place: Place, source: str) -> str:
    return f"{source}:{content.line_of(place)}: " if content.lines else ""


def _place_of(problem: Any) -> Place:
    return tuple(part for part in problem["loc"] if not str(part).startswith("function-"))


def _where(content: LinedYaml, place: Place, source: str) -> str:
    if content.lines:
        return f"{source}:{content.line_of(place)}"
    shown = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in place)
    return f"{source}: {shown.lstrip('.')}" if shown else source
