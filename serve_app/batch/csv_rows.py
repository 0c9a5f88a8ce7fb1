"""Reads the rows of an untrusted CSV file as text: `00123`, `1e5` and empty fields do not change.

A record that cannot be read affects no other record: reading continues with the line after its
first one.
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

A record whose quote is never closed ends there.
"""
_NO_ROW = "," * MAX_COLUMNS + "x\n"
"""Stands for a line that is too long.

It has more fields than any header, and the last one is not empty.
"""
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class _TooLong(Exception):
    """A line or a record is longer than the limit."""


class _Lines:
    """The lines of a file; those of the last record can be read again."""

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
            self._skip_rest()
            line = _NO_ROW  # kept for the case that the lines of the record are read again
        self._record.append(line)
        self._record_chars += len(line)
        if is_cut or self._record_chars > MAX_COLUMNS + MAX_RECORD_CHARS:
            raise _TooLong
        return line

    def begin_record(self) -> int:
        """Begin a record and return the number of its first line."""
        self._record.clear()
        self._record_chars = 0
        return self._read + 1

    def go_back(self) -> None:
        """Go back to the second line of the record."""
        self._again.extendleft(reversed(self._record[1:]))
        self._read -= len(self._record[1:])

    def _skip_rest(self) -> None:
        """Read up to the end of a line, without holding it in memory."""
        part = " "
        while part and not part.endswith(("\n", "\r")):
            part = self._file.readline(MAX_RECORD_CHARS)


def csv_rows(file: IO[bytes], paths: Collection[str]) -> Iterator[Rows]:
    """Yield the rows of a CSV file; every column is text.

    Args:
        file: The file.
        paths: Names of columns that may name images; the first one that exists does. If one of its
            values is not UTF-8, it is binary; in other columns such bytes become escapes.

    Raises:
        ValueError: There is no header, or not one of the rows can be read.
        OSError: Reading failed.
    """
    lines, names = _lines_and_header(file)
    path = next((name for name in paths if name in names), None)
    page: list[list[str] | None] = []
    malformed: dict[int, int] = {}
    has_good = False
    for number, row in _records(lines, len(names)):
        if row is None:
            malformed[len(page)] = number
        page.append(row)
        has_good = has_good or row is not None
        if len(page) >= ROWS:
            yield Rows(_table(names, page, path), malformed)
            page = []
            malformed = {}
    if malformed and not has_good:
        raise ValueError("not one of its rows can be read")
    yield Rows(_table(names, page, path), malformed)


def _records(lines: _Lines, columns: int) -> Iterator[tuple[int, list[str] | None]]:
    """Yield the line number and the fields of each record; None if it is malformed."""
    reader = csv.reader(lines, strict=True)
    while True:
        number = lines.begin_record()
        try:
            row = next(reader)
            is_malformed = any(row[columns:])  # a comma at the end of a line adds an empty field
        except StopIteration:
            return
        except (csv.Error, _TooLong):
            row = []
            is_malformed = True
        if is_malformed:
            lines.go_back()  # an open quote may have swallowed the next lines
            yield number, None
        elif row:  # an empty line is not a record
            yield number, row


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
    check_names(names)  # before rows with 100,000 columns are built
    return lines, names


def _table(names: list[str], rows: list[list[str] | None], path: str | None) -> pa.Table:
    columns = [
        _column([_field(row, i) for row in rows], is_path=name == path)
        for i, name in enumerate(names)
    ]
    return pa.table(columns, names=names)


def _column(values: list[str | None], is_path: bool) -> pa.Array:
    """Return a column of text; of bytes if it names files and one name is not UTF-8."""
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        convert = _to_bytes if is_path else _escaped
        kind = pa.binary() if is_path else pa.string()
        return pa.array([None if value is None else convert(value) for value in values], kind)


def _field(row: list[str] | None, i: int) -> str | None:
    """Return a field; None in a malformed row, and empty if the row is too short."""
    if row is None:
        return None
    return row[i] if i < len(row) else ""


def _to_bytes(text: str) -> bytes:
    """Return the bytes of a text that was read with surrogate escapes."""
    return text.encode("utf-8", "surrogateescape")


def _escaped(text: str) -> str:
    r"""Return text in which bytes that are not UTF-8 are escapes such as `\xe9`."""
    return _to_bytes(text).decode("utf-8", "backslashreplace")
