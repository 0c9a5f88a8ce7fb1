"""Reading vocabularies from files: YAML, JSON, JSON lines, CSV or plain text.

Plain text has one label a line. All problems of a file are reported at once, each with its line.

Not here: what a tag is (`vocabulary.py`), checks of the tags together (`vocabulary_checks.py`).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serve_app.errors import ConfigError
from serve_app.tagging.lined_yaml import LinedYaml, parse_lined_yaml
from serve_app.tagging.vocabulary import Tag
from serve_app.tagging.vocabulary_blocks import Entry, VocabularyFile, inline_entries, read_blocks
from serve_app.tagging.vocabulary_tables import COMMENT, read_table
from serve_app.untrusted.bounded_files import read_text
from serve_app.untrusted.problems import raise_problems

MAX_VOCABULARY_BYTES = 32 * 2**20
"""Bytes of one file. A vocabulary of 100,000 tags with all their fields has about 15 MB."""
JSON_HINT = "JSON has no comments and no comma before a closing bracket; YAML has both"


def read_vocabulary_file(path: Path) -> VocabularyFile:
    """Read a vocabulary by its suffix: `.yaml`, `.yml`, `.json`, `.jsonl`, `.ndjson` or `.csv`.

    A file with any other suffix is JSON if all of it is a JSON list or object, and otherwise text
    with one label a line.

    Raises:
        ConfigError: One line for each problem, with the file's line and the reason.
    """
    text = read_text(path, MAX_VOCABULARY_BYTES)
    match path.suffix.lower():
        case ".yaml" | ".yml":
            return read_blocks(parse_lined_yaml(text, path), str(path))
        case ".json":
            return read_blocks(LinedYaml(_parse_json(text, path, 1)), str(path))
        case ".jsonl" | ".ndjson":
            return VocabularyFile(_from_json_lines(text, path))
        case ".csv":
            return VocabularyFile(read_table(text, path))
        case _:
            return _from_text(text, path)


def _from_text(text: str, path: Path) -> VocabularyFile:
    """Read a list of labels, or JSON or JSON lines that were given another suffix."""
    if all(line[:1] + line[-1:] == "{}" for _, line in _content_lines(text)):
        return VocabularyFile(_from_json_lines(text, path)) if text.strip() else VocabularyFile(())
    if _is_bracketed(text):
        try:
            content = _parse_json(text, path, 1)
        except ConfigError as error:
            if "\n" not in text.strip():  # several lines are labels that happen to have brackets
                raise ConfigError(
                    f"{error} If it is a list, name the file .json or .yaml."
                ) from error
        else:
            return read_blocks(LinedYaml(content), str(path))
    entries: list[Entry] = []
    problems: list[str] = []
    for number, line in _content_lines(text):
        if line.endswith(","):
            problems.append(
                f"{path}:{number}: {line!r} ends with a comma; this file has one label a line, "
                "without commas between them."
            )
        entries.append(Entry(Tag(label=line), f"{path}:{number}"))
    raise_problems(problems)
    return VocabularyFile(tuple(entries))


def _from_json_lines(text: str, path: Path) -> tuple[Entry, ...]:
    """Read one label, or one block of a tag's keys, from each line."""
    entries: list[Entry] = []
    problems: list[str] = []
    for number, line in _content_lines(text):
        try:
            (entry,) = inline_entries([_parse_json(line, path, number)], "tag")
        except ConfigError as error:
            problems.append(str(error).replace("tag[1]", f"{path}:{number}"))
        else:
            entries.append(Entry(entry.tag, f"{path}:{number}"))
    raise_problems(problems)
    return tuple(entries)


def _content_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are neither empty nor a comment, and their numbers."""
    for number, line in enumerate(
        text.split("\n"), 1
    ):  # splitlines would also split at characters inside a label
        stripped = line.strip()
        if stripped and not stripped.startswith(COMMENT):
            yield number, stripped


def _is_bracketed(text: str) -> bool:
    stripped = text.strip()
    return stripped[:1] + stripped[-1:] in ("[]", "{}")


def _parse_json(text: str, path: Path, first_line: int) -> Any:
    """Return a JSON document; raises `ConfigError` with the line.

    A key that is set twice is an error.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ConfigError(f"{path}:{line}: not JSON: {error.msg}; {JSON_HINT}.") from error
    except RecursionError as error:
        raise ConfigError(f"{path}:{first_line}: not JSON: it is nested too deeply.") from error
    except ValueError as error:
        raise ConfigError(f"{path}:{first_line}: not JSON: {error}.") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    block: dict[str, Any] = {}
    for key, value in pairs:
        if key in block:
            raise ValueError(f"{key!r} is set twice in one block; keep one of them")
        block[key] = value
    return block


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
