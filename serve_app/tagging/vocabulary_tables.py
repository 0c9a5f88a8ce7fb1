"""Vocabularies as CSV: a column for each key of a tag, `|` between several aliases or parents.

Spreadsheets leave traces that are not errors: columns and cells without content at the end of a
line, and empty lines. Lines before the header that begin with `#` are comments; below it, `#`
begins a label.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from serve_app.errors import ConfigError
from serve_app.tagging.vocabulary import Tag
from serve_app.tagging.vocabulary_blocks import Entry, sentence_of
from serve_app.untrusted.problems import raise_problems

LIST_COLUMNS = ("aliases", "parents")
LIST_SEPARATOR = "|"
COMMENT = "#"


def read_table(text: str, path: Path) -> tuple[Entry, ...]:
    """Return the tags of a CSV.

    Raises:
        ConfigError: One line for each problem, with the file's line and the reason.
    """
    reader = csv.reader(_without_comments(text), strict=True)
    begins = 1
    header: list[str] | None = []
    try:
        while header is not None and not any(header):
            begins = reader.line_num + 1
            header = next(reader, None)
    except csv.Error as error:
        raise ConfigError(f"{path}:{begins}: not CSV: {error}.") from error
    columns = _columns(header or [], f"{path}:{begins}")  # without a header there are no columns
    entries: list[Entry] = []
    problems: list[str] = []
    begins = reader.line_num + 1
    try:
        for row in reader:
            where = f"{path}:{begins}"
            begins = reader.line_num + 1
            cells = [cell.strip() for cell in row]
            if any(cells[len(columns) :]):
                problems.append(
                    f"{where}: there are more fields than columns; a field that holds a comma "
                    "needs quotes."
                )
            elif any(cells):
                try:
                    entries.append(Entry(_tag(dict(zip(columns, cells, strict=False))), where))
                except ValidationError as error:
                    problems += [f"{where}: {sentence_of(problem)}" for problem in error.errors()]
    except csv.Error as error:
        problems.append(f"{path}:{begins}: not CSV: {error}.")
    raise_problems(problems)
    return tuple(entries)


def _columns(header: list[str], where: str) -> list[str]:
    columns = [column.strip() for column in header]
    while columns and not columns[-1]:
        columns.pop()
    unknown = [column for column in columns if column not in Tag.model_fields]
    if "label" not in columns or unknown or len(set(columns)) < len(columns):
        raise ConfigError(
            f"{where}: the first line must name columns, label and any of "
            f"{', '.join(Tag.model_fields)}; got {', '.join(columns)}."
        )
    return columns


def _tag(cells: dict[str, str]) -> Tag:
    filled = {name: cell for name, cell in cells.items() if cell}
    lists = {
        name: tuple(part.strip() for part in filled[name].split(LIST_SEPARATOR))
        for name in LIST_COLUMNS
        if name in filled
    }
    return Tag.model_validate({"label": "", **filled, **lists})


def _without_comments(text: str) -> Iterator[str]:
    """Yield the lines, with comments above the header empty so that line numbers stay."""
    is_above = True
    for line in text.split("\n"):  # splitlines would also split at characters inside a label
        is_above = is_above and (line.startswith(COMMENT) or not line.strip())
        yield "\n" if is_above else f"{line}\n"
