"""Reading vocabularies from files: YAML, CSV, or plain text with one label a line.

Every problem of a file is told with its line, all of them at once.

Not here: what a tag is (`vocabulary.py`).
"""

import csv
import difflib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from serve_app.bounded_files import read_text
from serve_app.errors import ConfigError, InvalidRequest
from serve_app.tagging.lined_yaml import LinedYaml, parse_lined_yaml
from serve_app.tagging.prompts import check_shown, check_templates
from serve_app.tagging.vocabulary import MAX_LABEL_CHARACTERS, Tag, TagEntry, TagVocabulary, canonical_name, check_label

LIST_COLUMNS = ("aliases", "parents")
LIST_SEPARATOR = "|"
MAX_PROBLEMS = 50
"""Lines that are told; a file with more has one cause for all of them."""
COMMENT = "#"
MAX_ANCESTORS = 256
"""Parents of one tag, with their parents and so on. WordNet's nouns have up to about 40."""
MAX_QUOTED = 200
"""Characters of a value that a message repeats."""
MAX_SHOWN = 10
"""Labels of a circle that a message names."""
MAX_VOCABULARY_BYTES = 32 * 2**20
"""Bytes of one file. A vocabulary of 100,000 tags with all their fields has about 15 MB."""


class _File(BaseModel):
    """The YAML form."""

    model_config = ConfigDict(extra="forbid")

    tags: tuple[TagEntry, ...]
    prompt_templates: tuple[str, ...] | None = None
    background_prompts: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A tag and where it stands, such as `general.yaml:17`."""

    tag: Tag
    where: str


@dataclass(frozen=True, slots=True)
class VocabularyFile:
    """What a file holds: its tags, and its templates and background prompts where it has some."""

    entries: tuple[Entry, ...]
    prompt_templates: tuple[str, ...] | None = None
    background_prompts: tuple[str, ...] | None = None


def read_vocabulary_file(path: Path) -> VocabularyFile:
    """Read a vocabulary by its suffix: `.yaml` or `.yml`, `.csv`, anything else as one label a line.

    Raises:
        ConfigError: One line for each problem, with the file's line and the reason.
    """
    text = read_text(path, MAX_VOCABULARY_BYTES)
    match path.suffix.lower():
        case ".yaml" | ".yml":
            return _from_yaml(parse_lined_yaml(text, path), path)
        case ".csv":
            return VocabularyFile(_from_csv(text, path))
        case _:
            lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
            kept = [(number, line) for number, line in lines if line and not line.startswith(COMMENT)]
            return VocabularyFile(tuple(Entry(Tag(label=label), f"{path}:{number}") for number, label in kept))


def inline_entries(labels: Sequence[Any], where: str) -> tuple[Entry, ...]:
    """Return the tags of a list that stands in the configuration itself.

    Raises:
        ConfigError: One of them is neither a label nor a block of a tag's keys.
    """
    entries: list[Entry] = []
    problems: list[str] = []
    for at, value in enumerate(labels, 1):
        place = f"{where}[{at}]"
        try:
            entries.append(Entry(_File.model_validate({"tags": [value]}).tags[0], place))
        except ValidationError as error:
            problems += [f"{place}: {_sentence(problem)}" for problem in error.errors()]
    raise_problems(problems)
    return tuple(entries)


def check_vocabulary(
    entries: Sequence[Entry], prompt_templates: Sequence[str], background_prompts: Sequence[str], name: str
) -> TagVocabulary:
    """Check the tags of a registered vocabulary together and return them.

    Raises:
        ConfigError: One line for each problem: two tags of one name, no word, an unknown parent, parents in a circle.
    """
    problems = _problems_of_names(entries) + _problems_of_categories(entries) + _problems_of_parents(entries)
    if not entries:
        problems.append(f"{name}: there are no labels in it; give at least one.")
    try:
        check_templates(prompt_templates)
        for prompt in background_prompts:
            check_label(prompt)
    except InvalidRequest as error:
        problems.append(f"{name}: prompt_templates or background_prompts: {error}")
    raise_problems(problems)
    return TagVocabulary(
        tags=tuple(entry.tag for entry in entries),
        prompt_templates=tuple(prompt_templates),
        background_prompts=tuple(background_prompts),
    )


def _from_yaml(content: LinedYaml, path: Path) -> VocabularyFile:
    data = {"tags": content.data} if isinstance(content.data, list) else content.data
    nested = data is content.data
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds neither a list of labels nor a block with tags.")
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            place = tuple(part for part in problem["loc"] if part != "function-before[_tag_from(), Tag]")
            line = content.line_of(place if nested else place[1:])
            problems.append(f"{path}:{line}: {_sentence(problem)}")
        raise_problems(problems)
        raise
    prefix = ("tags",) if nested else ()
    entries = tuple(Entry(tag, f"{path}:{content.line_of((*prefix, at))}") for at, tag in enumerate(file.tags))
    return VocabularyFile(entries, file.prompt_templates, file.background_prompts)


def _from_csv(text: str, path: Path) -> tuple[Entry, ...]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True)
    try:
        columns = list(reader.fieldnames or ())
    except csv.Error as error:
        raise ConfigError(f"{path}:1: not CSV: {error}.") from error
    unknown = [column for column in columns if column not in Tag.model_fields]
    if "label" not in columns or unknown or len(set(columns)) < len(columns):
        raise ConfigError(
            f"{path}:1: the first line must name columns, label and any of {', '.join(Tag.model_fields)}; got {', '.join(columns)}."
        )
    entries: list[Entry] = []
    problems: list[str] = []
    begins = 2
    try:
        for row in reader:
            where, begins = f"{path}:{begins}", reader.line_num + 1
            if "" in row:
                problems.append(f"{where}: there are more fields than columns; a field that holds a comma needs quotes.")
                continue
            cells = {name: value.strip() for name, value in row.items() if value and value.strip()}
            if not cells:
                continue
            listed = {name: tuple(part.strip() for part in cells[name].split(LIST_SEPARATOR)) for name in LIST_COLUMNS if name in cells}
            try:
                entries.append(Entry(Tag.model_validate({"label": "", **cells, **listed}), where))
            except ValidationError as error:
                problems += [f"{where}: {_sentence(problem)}" for problem in error.errors()]
    except csv.Error as error:
        problems.append(f"{path}:{begins}: not CSV: {error}.")
    raise_problems(problems)
    return tuple(entries)


def _problems_of_names(entries: Sequence[Entry]) -> list[str]:
    problems: list[str] = []
    taken: dict[str, str] = {}
    for entry in entries:
        tag = entry.tag
        names = {canonical_name(name): name for name in (tag.label, tag.prompt) if name is not None}  # one may repeat the other
        said = [
            *names.values(),
            *(alias for alias in tag.aliases if tag.prompt is None or canonical_name(alias) != canonical_name(tag.prompt)),
        ]
        for name in said:
            try:
                check_label(name.strip())
            except InvalidRequest as error:
                problems.append(f"{entry.where}: {'prompt: ' if name is tag.prompt else ''}{error}")
                continue
            if name != name.strip():
                problems.append(f"{entry.where}: {name!r} has spaces around it; take them away.")
            canonical = canonical_name(name)
            if canonical in taken:
                problems.append(f"{entry.where}: {name!r} is the same to the model as a name at {taken[canonical]}; keep one of them.")
            taken.setdefault(canonical, entry.where)
    return problems


def _problems_of_categories(entries: Sequence[Entry]) -> list[str]:
    problems: list[str] = []
    for entry in entries:
        if entry.tag.category is None:
            continue
        try:
            check_shown(entry.tag.category, "category")
        except InvalidRequest as error:
            problems.append(f"{entry.where}: {error}")
        if len(entry.tag.category) > MAX_LABEL_CHARACTERS:
            problems.append(f"{entry.where}: the category is longer than {MAX_LABEL_CHARACTERS} characters; shorten it.")
    return problems


def _problems_of_parents(entries: Sequence[Entry]) -> list[str]:
    known = {entry.tag.label: entry for entry in entries}
    problems: list[str] = []
    for entry in entries:
        for parent in entry.tag.parents:
            if parent not in known:
                # finding the nearest label takes milliseconds for each
                told = len(problems) < MAX_PROBLEMS
                nearest = difflib.get_close_matches(parent, known, n=1, cutoff=0.6) if told else []
                hint = f"; did you mean {nearest[0]!r}?" if nearest else "; add it as a tag of its own."
                problems.append(f"{entry.where}: the parent {parent!r} is not a label of this vocabulary{hint}")
    if not problems and (circle := _circle(known)):
        shown = [*circle[:MAX_SHOWN], "…"] if len(circle) > MAX_SHOWN else circle
        problems.append(f"{known[circle[0]].where}: parents go round in a circle: {' → '.join(shown)}.")
    return problems or _problems_of_ancestry(known)


def _problems_of_ancestry(known: dict[str, Entry]) -> list[str]:
    """Bound what `TagTable.ancestors` holds: parents, their parents and so on of every tag."""
    problems: list[str] = []
    for entry in known.values():
        found = set(entry.tag.parents)
        waiting = list(found)
        while waiting and len(found) <= MAX_ANCESTORS:
            new = set(known[waiting.pop()].tag.parents) - found
            found |= new
            waiting += new
        if len(found) > MAX_ANCESTORS:
            problems.append(f"{entry.where}: the tag has more than {MAX_ANCESTORS} parents, counting theirs; remove some.")
    return problems


def _circle(known: dict[str, Entry]) -> list[str]:
    """Return the labels of a circle of parents, or nothing."""
    finished: set[str] = set()
    for start in known:
        path: list[str] = [start]
        on_path = {start}
        pending = [iter(known[start].tag.parents)]
        while pending:
            parent = next(pending[-1], None)
            if parent is None:
                pending.pop()
                on_path.discard(path[-1])
                finished.add(path.pop())
            elif parent in on_path:
                return [*path[path.index(parent) :], parent]
            elif parent not in finished:
                path.append(parent)
                on_path.add(parent)
                pending.append(iter(known[parent].tag.parents))
    return []


def _sentence(problem: Any) -> str:
    """Return what is wrong with one value of a file."""
    key = next((str(part) for part in reversed(problem["loc"]) if part in Tag.model_fields or part in _File.model_fields), "")
    match problem["type"]:
        case "extra_forbidden":
            known = [*Tag.model_fields, *_File.model_fields]
            key_given = str(problem["loc"][-1])[:MAX_QUOTED]
            nearest = difflib.get_close_matches(key_given, known, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(Tag.model_fields)}."
            return f"unknown key {key_given}; {hint}"
        case "string_type":
            return f"{key} is {_quoted(problem['input'])}, which YAML does not read as text; put it in quotes."
        case "missing":
            return f"{problem['loc'][-1]} is missing."
        case "tuple_type":
            return f"{key} must be a list, such as [{str(problem['input'])[:MAX_QUOTED]}]."
        case "model_type" | "model_attributes_type" | "dict_type":
            given = _quoted(problem["input"])
            return f"{given} is neither a label nor a block of a tag's keys; a label that looks like a number needs quotes."
        case _:
            message = problem["msg"].removeprefix("Value error, ")
            return f"{key}: {message[0].lower()}{message[1:]} (got {_quoted(problem['input'])})."


def _quoted(value: Any) -> str:
    """Return a value as a message repeats it: as Python writes it, and not all of a long one."""
    text = repr(value)
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…"


def raise_problems(problems: Sequence[str]) -> None:
    """Raise `ConfigError` if there are problems, one line each, cut where there are many."""
    if not problems:
        return
    more = len(problems) - MAX_PROBLEMS
    raise ConfigError("\n".join([*problems[:MAX_PROBLEMS], *([f"… and {more} more"] if more > 0 else [])]))
