"""Reads the rows of an untrusted CSV file as text: `00123`, `1e5` and an empty field stay what they
are.

A record that cannot be read costs itself alone: reading goes on with the line after its first one.
"""

import codecs
import csv
import io
from collections import deque
from collections.abc import Collection, Iterator
from typing import IO

import pyarrow as pa

from serve_app.batch.table_rows import MAX_COLUMNS, ROWS, Rows, check_names

MAX_RECORD_CHARS = 2**20
"""Maximum length of a line and of a record.

A quote that is never closed is given up after as many.
"""
_NO_ROW = "," * MAX_COLUMNS + "x\n"
"""Stands for a line that is too long: it has more fields than any header, and the last is not
empty."""
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class _TooLong(Exception):
    """A line or a record is longer than is read."""


class _Lines:
    """The lines of a file, of which those of the last record can be read again."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._record: list[str] = []
        self._record_chars = 0
        self._again: deque[str] = deque()
        self._read = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._file.readline(MAX_RECORD_CHARS)
        if not line:
            raise StopIteration
        self._read += 1
        is_cut = len(line) == MAX_RECORD_CHARS and not line.endswith(("\n", "\r"))
        if is_cut:
            self._pass_over_rest()
            line = _NO_ROW  # if the lines before it are given out again, so is this one
        self._record.append(line)
        self._record_chars += len(line)
        if is_cut or self._record_chars > MAX_COLUMNS + MAX_RECORD_CHARS:
            raise _TooLong
        return line

    def begin_record(self) -> int:
        """Take note that a record begins, and return the number of its first line."""
        self._record.clear()
        self._record_chars = 0
        return self._read + 1

    def go_back(self) -> None:
        """Give out the lines of the record again, except for the first one."""
        self._again.extendleft(reversed(self._record[1:]))
        self._read -= len(self._record[1:])

    def _pass_over_rest(self) -> None:
        while (part := self._file.readline(MAX_RECORD_CHARS)) and not part.endswith(("\n", "\r")):
            pass


def csv_rows(file: IO[bytes], paths: Collection[str]) -> Iterator[Rows]:
    """Yield the rows of a CSV file; every column is text.

    Args:
        file: The file.
        paths: Columns that may name images; the first that there is does. If one of its values is
            not UTF-8, it is binary; in other columns such bytes become escapes.

    Raises:
        ValueError: There is no header, or not one of the rows can be read.
        OSError: Reading failed.
    """
    lines, names = _lines_and_header(file)
    path = next((name for name in paths if name in names), None)
    reader = csv.reader(lines, strict=True)
    waiting: list[list[str] | None] = []
    malformed: dict[int, int] = {}
    has_good = False
    while True:
        number = lines.begin_record()
        try:
            row = next(reader, None)
            is_malformed = row is not None and any(
                row[len(names) :]
            )  # a comma at the end adds an empty field
        except (csv.Error, _TooLong):
            row = []
            is_malformed = True
        if row is None:
            break
        if is_malformed:
            lines.go_back()  # a quote may have swallowed the rows of the next lines
            malformed[len(waiting)] = number
            waiting.append(None)
        elif row:  # an empty line is no row
            waiting.append(row)
            has_good = True
        if len(waiting) >= ROWS:
            yield Rows(_table(names, waiting, path), malformed)
            waiting = []
            malformed = {}
    if malformed and not has_good:
        raise ValueError("not one of its rows can be read")
    yield Rows(_table(names, waiting, path), malformed)


def _lines_and_header(file: IO[bytes]) -> tuple[_Lines, list[str]]:
    start = file.read(2)
    file.seek(0)
    if start in _UTF16:
        raise ValueError("it is UTF-16; save it as UTF-8")
    csv.field_size_limit(MAX_RECORD_CHARS)
    lines = _Lines(io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline=""))
    records = csv.reader(lines, strict=True)
    header: list[str] | None = []
    try:
        while header is not None and not any(name.strip() for name in header):
            lines.begin_record()
            header = next(records, None)
    except (csv.Error, _TooLong) as error:
        raise ValueError("its first line is not a CSV header") from error
    if header is None:
        raise ValueError("it is empty: it has no line that names the columns")
    names = [_escaped(name) for name in header]
    check_names(names)  # before 100,000 columns of rows are built
    return lines, names


def _table(names: list[str], rows: list[list[str] | None], path: str | None) -> pa.Table:
    columns = []
    for place, name in enumerate(names):
        values = [_field(row, place) for row in rows]
        try:
            columns.append(pa.array(values, pa.string()))
        except UnicodeEncodeError:
            if name == path:
                encoded = [
                    None if value is None else value.encode("utf-8", "surrogateescape")
                    for value in values
                ]
                columns.append(pa.array(encoded, pa.binary()))
            else:
                columns.append(
                    pa.array(
                        [None if value is None else _escaped(value) for value in values],
                        pa.string(),
                    )
                )
    return pa.table(columns, names=names)


def _field(row: list[str] | None, place: int) -> str | None:
    """Return a field; None in a malformed row, and empty if the row is too short."""
    if row is None:
        return None
    return row[place] if place < len(row) else ""


def _escaped(text: str) -> str:
    r"""Return text in which bytes that are not UTF-8 are escapes such as `\xe9`."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
