"""Reads the rows of untrusted Parquet, CSV and JSON Lines files, a few thousand at a time.

Not here: CSV (`csv_rows.py`) and JSON Lines (`json_rows.py`) themselves.
"""

from collections.abc import Collection, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from serve_app.batch.csv_rows import csv_rows
from serve_app.batch.json_rows import json_rows
from serve_app.batch.storage import Storage, Stored
from serve_app.batch.store_errors import ObjectUnreadable, StoreFailed
from serve_app.batch.table_rows import ROWS, Rows, check_names
from serve_app.batch.urls import shown_url
from serve_app.errors import ConfigError

MAX_JSON_LINES_BYTES = 2**30
"""Maximum size of a JSON Lines file, which is held in memory as a whole."""


class DamagedTable(ObjectUnreadable):
    """A file of rows cannot be read, or can be read only in part."""


def read_tables(
    storage: Storage, found: Stored, without: str | None, paths: Collection[str] = ()
) -> Iterator[Rows]:
    """Yield the rows of a Parquet, CSV or JSON Lines file.

    Args:
        storage: Where it is.
        found: The file.
        without: A column of a Parquet file that is not read.
        paths: Columns of a CSV file that may name files; see `csv_rows`.

    Raises:
        ObjectUnreadable: The rest of the file cannot be read.
        ConfigError: The store cannot be reached, so the file may be intact.
    """
    try:
        for rows in _rows(storage, found, without, paths):
            check_names(rows.table.column_names)
            yield rows
    except StoreFailed as error:
        raise ConfigError(f"{shown_url(found.url)} cannot be read: {error}.") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _not_a_table(found.url, error) from error


def parquet_schema(storage: Storage, url: str) -> pa.Schema:
    """Return the schema of a Parquet file.

    Raises:
        ObjectUnreadable: It is not a Parquet file, or cannot be opened.
        ConfigError: The store cannot be reached.
    """
    try:
        return pq.ParquetFile(storage.open(url)).schema_arrow
    except StoreFailed as error:
        raise ConfigError(f"{shown_url(url)} cannot be read: {error}.") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _not_a_table(url, error) from error


def _rows(
    storage: Storage, found: Stored, without: str | None, paths: Collection[str]
) -> Iterator[Rows]:
    name = found.url.lower()
    if name.endswith(".parquet"):
        yield from _parquet_rows(pq.ParquetFile(storage.open(found.url)), without)
    elif name.endswith(".csv"):
        with storage.open(found.url) as file:
            yield from csv_rows(file, paths)
    else:
        if found.size > MAX_JSON_LINES_BYTES:
            raise ValueError(
                f"it has more than {MAX_JSON_LINES_BYTES:,} bytes; convert it to Parquet"
            )
        with storage.open(found.url) as file:
            data = file.read()
        yield from json_rows(data)


def _parquet_rows(file: pq.ParquetFile, without: str | None) -> Iterator[Rows]:
    names = file.schema_arrow.names
    columns = [name for name in dict.fromkeys(names) if name != without]
    for batch in file.iter_batches(ROWS, columns=None if without not in names else columns):
        if columns:
            yield Rows(pa.Table.from_batches([batch]), {})
        else:
            yield Rows(pa.table({"row": pa.nulls(batch.num_rows)}).select([]), {})


def _not_a_table(url: str, error: Exception) -> DamagedTable:
    why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return DamagedTable(f"{shown_url(url)} cannot be read as a table: {why}.")
