"""Inputs of a job from the rows of manifests, which name images, and of tables with images."""

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from serve_app.batch.damage import DamagedFiles
from serve_app.batch.input_rows import DamagedTable, parquet_schema, read_tables
from serve_app.batch.input_tables import MALFORMED, OWN, own_table
from serve_app.batch.options import BatchOptions
from serve_app.batch.storage import Storage, Stored
from serve_app.batch.store_errors import ObjectUnreadable
from serve_app.batch.table_rows import Rows
from serve_app.batch.urls import shown_url, url_beside
from serve_app.errors import ConfigError
from serve_app.terminal.printable import printable

RESERVED = (
    "etag",
    "width",
    "height",
    "tags",
    "embedding",
    "error",
    "checkpoint",
    "revision",
    "vocabulary_fingerprint",
    "tagged_at",
)
"""Names of output columns, which a manifest's columns must not have."""
URI_COLUMNS = ("uri", "url", "image_url", "path", "file", "filename", "key")
IMAGE_COLUMNS = ("image", "image_bytes", "bytes", "jpg", "png", "webp", "content", "data")
TABLES = (".parquet", ".csv", ".jsonl", ".ndjson")
SURROGATE = re.compile("[\ud800-\udfff]")
"""Halves of surrogate pairs, which Unicode text does not contain."""


def manifest_inputs(
    storage: Storage, files: Sequence[Stored], options: BatchOptions
) -> Iterator[pa.Table]:
    """Yield the images that manifests name.

    A row that cannot be read, or that does not name an image, is an input with an error. So is the
    rest of a damaged manifest.

    Args:
        storage: Where the manifests are.
        files: The manifests.
        options: Options of the job; they may name the column of URIs.
    """
    damaged = DamagedFiles(alone=len(files) == 1)
    paths = (options.uri_column,) if options.uri_column else URI_COLUMNS
    for found in files:
        try:
            for rows in read_tables(storage, found, None, paths):
                inputs = _named_images(rows, found.url, options)
                damaged.readable += 1
                yield inputs
        except ObjectUnreadable as error:
            damaged.add(found, error)
    yield from damaged.rows("object")


def table_inputs(
    storage: Storage, files: Sequence[Stored], image_column: str
) -> Iterator[pa.Table]:
    """Yield the rows of Parquet files that contain images.

    Args:
        storage: Where the files are.
        files: The files.
        image_column: Column that contains the images.
    """
    damaged = DamagedFiles(alone=len(files) == 1)
    for found in files:
        first_row = 0
        try:
            if not found.url.lower().endswith(".parquet"):
                raise DamagedTable(
                    f"{shown_url(found.url)}: images in a table are read from Parquet only."
                )
            for rows in read_tables(storage, found, image_column):
                inputs = _row_inputs(rows.table, found, first_row)
                damaged.readable += 1
                first_row += len(rows.table)
                yield inputs
        except ObjectUnreadable as error:
            damaged.add(found, error)
    yield from damaged.rows("row")


def image_column_of(storage: Storage, files: Sequence[Stored], options: BatchOptions) -> str | None:
    """Return the column that contains images; None if there is none.

    It is binary, or the struct of bytes and path that datasets of Hugging Face have. The first
    readable table decides.

    Raises:
        ConfigError: No table can be read, or none has the requested column.
    """
    problem: ConfigError | None = None
    names = (options.image_column,) if options.image_column else IMAGE_COLUMNS
    for found in files:
        if not found.url.lower().endswith(".parquet"):
            return None
        try:
            schema = parquet_schema(storage, found.url)
        except ObjectUnreadable as error:
            problem = problem or error
            continue
        for name in names:
            if schema.get_field_index(name) >= 0 and _holds_bytes(schema.field(name).type):
                return name
        if options.image_column is None:
            return None
        problem = ConfigError(
            f"{shown_url(found.url)} has no column {options.image_column} of bytes; "
            f"it has {', '.join(schema.names)}."
        )
    if problem is not None:
        raise problem
    return None


def _named_images(rows: Rows, url: str, options: BatchOptions) -> pa.Table:
    """Return the inputs that some rows of a manifest name.

    Raises:
        DamagedTable: It has no column of URIs.
        ConfigError: It has columns that the output has too.
    """
    table = rows.table
    column = _uri_column(table, url, options)
    names = [_text_of(value) for value in table[column].to_pylist()]
    # cached, because most rows with `..` lead to the same few folders
    realpath = functools.cache(os.path.realpath)
    urls = [_image_url(name, url, realpath) for name in names]
    uris = [printable(name) for name in names]
    offsets: list[int | None] = [None] * len(urls)
    for i, line in rows.malformed.items():
        uris[i] = f"{shown_url(url)}#line-{line}"
        urls[i] = url
        offsets[i] = MALFORMED

    others = table.drop_columns([column])
    _check_columns(others.column_names, url)
    unknown: list[Any] = [None] * len(urls)
    return _beside(own_table(uris, unknown, unknown, urls, offsets), others)


def _uri_column(table: pa.Table, url: str, options: BatchOptions) -> str:
    """Return the column of a manifest that names the images.

    Raises:
        DamagedTable: There is none.
    """
    names = table.column_names
    column = options.uri_column or next((name for name in URI_COLUMNS if name in names), None)
    if column is None or column not in names:
        raise DamagedTable(
            f"{shown_url(url)} has no column {column or 'uri'}; it has {', '.join(names)}. "
            "Name it with --uri-column."
        )
    return column


def _text_of(value: Any) -> str:
    """Return what a cell of a manifest names.

    Bytes are a name that is not UTF-8, or come from a binary column.
    """
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return "" if value is None else str(value)


def _image_url(name: str, manifest: str, realpath: Callable[[str], str]) -> str:
    """Return the URL of an image that a manifest names.

    Text that is not a valid URL is kept; reading it produces an error row.
    """
    if not name:
        return ""
    try:
        url = url_beside(manifest, name, realpath)
    except ConfigError:
        url = name
    return "" if SURROGATE.search(url) else url


def _row_inputs(table: pa.Table, found: Stored, first: int) -> pa.Table:
    """Return some rows of a table with images as inputs; `first` is the number of the first row."""
    rows = list(range(first, first + len(table)))
    uris = [f"{shown_url(found.url)}#{row}" for row in rows]
    others = table.drop_columns(["uri"]) if "uri" in table.column_names else table
    _check_columns(others.column_names, found.url)
    count = len(rows)
    own = own_table(uris, [found.etag] * count, [None] * count, [found.url] * count, rows)
    return _beside(own, others)


def _holds_bytes(kind: pa.DataType) -> bool:
    """Return whether a column of this type can contain images."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _check_columns(names: Iterable[str], url: str) -> None:
    if taken := [name for name in names if name in RESERVED or name in OWN.names]:
        raise ConfigError(
            f"{shown_url(url)} has columns that the output has too: {', '.join(taken)}. "
            "Rename them."
        )


def _beside(own: pa.Table, others: pa.Table) -> pa.Table:
    """Return inputs with the other columns of their table."""
    for name in others.column_names:
        own = own.append_column(others.schema.field(name), others[name])
    return own
