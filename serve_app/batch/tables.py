"""Reads the rows of untrusted Parquet, CSV and JSON Lines files, a few thousand at a time."""

import io
import json
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from serve_app.batch.storage import Storage, Stored, StoreFailed, shown_url
from serve_app.bounded_files import FileProblem, parse_json
from serve_app.errors import ConfigError

ROWS = 4096
"""Maximum number of rows in one yielded table."""
MAX_COLUMNS = 10_000
MAX_JSON_LINES_BYTES = 2**30
"""Maximum size of a JSON Lines file, which is held in memory as a whole."""
MAX_JSON_DEPTH = 64
"""Maximum nesting of lists and objects in one line. pyarrow crashes the process at some 20,000 levels."""


class DamagedTable(ConfigError):
    """A file of rows cannot be read, or can be read only in part."""


def read_tables(storage: Storage, found: Stored, without: str | None) -> Iterator[pa.Table]:
    """Yield the rows of a Parquet, CSV or JSON lines file, without one column.

    Raises:
        DamagedTable: The rest of the file cannot be read.
        ConfigError: The store cannot be reached, so the file may be intact.
    """
    try:
        for table in _tables(storage, found, without):
            _check_columns(table.column_names, found.url)
            yield table
    except StoreFailed as error:
        raise ConfigError(f"{shown_url(found.url)} cannot be read: {error}.") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _not_a_table(found.url, error) from error


def parquet_schema(storage: Storage, url: str) -> pa.Schema:
    """Return the schema of a Parquet file.

    Raises:
        DamagedTable: It is not a Parquet file.
        ConfigError: The store cannot be reached.
    """
    try:
        return pq.ParquetFile(storage.open(url)).schema_arrow
    except StoreFailed as error:
        raise ConfigError(f"{shown_url(url)} cannot be read: {error}.") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _not_a_table(url, error) from error


def _tables(storage: Storage, found: Stored, without: str | None) -> Iterator[pa.Table]:
    name = found.url.lower()
    if name.endswith(".parquet"):
        yield from _parquet_tables(pq.ParquetFile(storage.open(found.url)), without)
    elif name.endswith(".csv"):
        reader = pyarrow.csv.open_csv(storage.open(found.url))
        _check_columns(reader.schema.names, found.url)  # before 100,000 columns of rows are built
        for batch in reader:
            yield pa.Table.from_batches([batch])
    else:
        yield from _json_tables(storage, found)


def _parquet_tables(file: pq.ParquetFile, without: str | None) -> Iterator[pa.Table]:
    columns = [name for name in file.schema_arrow.names if name != without]
    for batch in file.iter_batches(ROWS, columns=columns):
        if columns:
            yield pa.Table.from_batches([batch])
        else:
            yield pa.table({"row": pa.nulls(batch.num_rows)}).select([])


def _json_tables(storage: Storage, found: Stored) -> Iterator[pa.Table]:
    """Yield the rows of a JSON Lines file up to the first line that is not an object."""
    if found.size > MAX_JSON_LINES_BYTES:
        raise ValueError(f"it has more than {MAX_JSON_LINES_BYTES:,} bytes; convert it to Parquet")
    with storage.open(found.url) as file:
        data = file.read(found.size)
    good, problem = _good_lines(data)
    if good:
        table = pyarrow.json.read_json(io.BytesIO(data[:good]))
        for start in range(0, len(table), ROWS):
            yield table.slice(start, ROWS)
    if problem:
        raise ValueError(problem)


def _good_lines(data: bytes) -> tuple[int, str]:
    """Return how many bytes of valid lines there are, and what is wrong with the next line."""
    good = 0
    for number, line in enumerate(io.BytesIO(data), 1):
        if line.strip():
            try:
                row = parse_json(line, f"line {number:,}")
            except FileProblem as error:
                return good, str(error)
            if not isinstance(row, dict):
                return good, f"line {number:,} is not a JSON object"
            if line.count(b"[") + line.count(b"{") > MAX_JSON_DEPTH and _depth(row) > MAX_JSON_DEPTH:
                return good, f"line {number:,} is nested deeper than {MAX_JSON_DEPTH}"
        good += len(line)
    return good, ""


def _depth(value: object) -> int:
    """Return the nesting depth of a value, without recursion."""
    deepest = 0
    waiting = [(value, 1)]
    while waiting:
        one, depth = waiting.pop()
        deepest = max(deepest, depth)
        parts = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        waiting += [(part, depth + 1) for part in parts if isinstance(part, dict | list)]
    return deepest


def _check_columns(names: list[str], url: str) -> None:
    if len(names) > MAX_COLUMNS:
        raise DamagedTable(f"{shown_url(url)} has {len(names):,} columns; at most {MAX_COLUMNS:,} are read.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DamagedTable(f"{shown_url(url)} has several columns named {json.dumps(twice)}; rename one of them.")


def _not_a_table(url: str, error: Exception) -> DamagedTable:
    why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return DamagedTable(f"{shown_url(url)} cannot be read as a table: {why}.")
