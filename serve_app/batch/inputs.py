"""What INPUT is, and its inputs one after the other: pictures below a prefix, rows of a manifest or table, members of tar files.

Every kind becomes tables of the same columns, so that all that follows knows one kind only:

    uri     what the output calls it: the URL of the picture, with #member or #row where several share an object
    etag    changes when the picture does; None where the store has none
    size    bytes, where they are known
    file    the object that it is read from
    offset  where in that object: the byte where a tar member starts, or the row of a table

and, of a manifest or table, its other columns as they are.
"""

import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from serve_app.batch.options import BatchOptions, InputFormat
from serve_app.batch.storage import Storage, Stored, folder_of, joined, shown_url, url_of
from serve_app.errors import ConfigError
from serve_app.picture_files import SUFFIXES

Kind = Literal["object", "member", "row"]
"""How one input is read: as an object, as a member of a tar file, as a row of a table."""

OWN = pa.schema([("uri", pa.string()), ("etag", pa.string()), ("size", pa.int64()), ("file", pa.string()), ("offset", pa.int64())])
RESERVED = ("etag", "width", "height", "tags", "embedding", "error", "checkpoint", "revision", "vocabulary_fingerprint", "tagged_at")
"""Names of output columns, which a manifest's columns must not have."""
URI_COLUMNS = ("uri", "url", "image_url", "path", "file", "filename", "key")
IMAGE_COLUMNS = ("image", "image_bytes", "bytes", "jpg", "png", "webp", "content", "data")
TABLES = (".parquet", ".csv", ".jsonl", ".ndjson")
PICTURES = (*SUFFIXES, ".avif", ".heic", ".heif")
ROWS = 4096
"""Of a table that is handed on."""
PEEK = 1000
"""Objects that are looked at to tell what a prefix holds."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a source holds.

    Attributes:
        kind: How an input is read.
        tables: Of the inputs, in an order that does not change; read once.
        image_column: Of a table of pictures.
    """

    kind: Kind
    tables: Iterator[pa.Table]
    image_column: str | None = None


def find_inputs(options: BatchOptions) -> Inputs:
    """Say what INPUT is and return its inputs.

    Raises:
        ConfigError: It is not there, holds nothing that can be tagged, or cannot be read.
    """
    storage, source = options.storage, options.source
    files = _named_file(storage, source)
    asked = options.input_format if options.input_format != "auto" else _guess(files or islice(storage.list(source), PEEK), source)
    objects: Iterable[Stored] = files or storage.list(source)
    if asked == "images":
        return Inputs("object", _pictures(objects))
    if asked == "webdataset":
        return Inputs("member", _members(storage, (found for found in objects if found.url.lower().endswith(".tar"))))
    found = [found for found in objects if found.url.lower().endswith(TABLES)]
    if not found:
        raise ConfigError(f"{shown_url(source)} holds no {', '.join(TABLES)}.")
    image_column = _image_column(storage, found[0], options) if asked in ("auto", "table") or options.image_column else None
    if asked == "table" and image_column is None:
        raise ConfigError(
            f"{shown_url(found[0].url)} has no column of pictures; name it with --image-column, or use --input-format manifest."
        )
    if image_column is not None and options.input_format != "manifest":
        return Inputs("row", _table_rows(storage, found, image_column), image_column)
    return Inputs("object", _manifest_rows(storage, found, options))


def _named_file(storage: Storage, source: str) -> list[Stored]:
    """Return the file that the source names, or none where it is a folder or prefix."""
    if not source.lower().endswith((*TABLES, ".tar", *PICTURES)):
        return []
    found = storage.find(source)
    return [found] if found is not None else []


def _guess(objects: Iterable[Stored], source: str) -> InputFormat:
    counts = Counter[InputFormat](kind for found in objects if (kind := _format_of(found.url)) is not None)
    if not counts:
        raise ConfigError(
            f"{shown_url(source)} is not there or holds nothing that can be tagged: pictures ({', '.join(PICTURES)}), "
            f"tables or manifests ({', '.join(TABLES)}) or .tar shards."
        )
    return counts.most_common(1)[0][0]


def _format_of(url: str) -> InputFormat | None:
    name = url.lower()
    if name.rsplit("/", 1)[-1].startswith(("_", ".")):
        return None
    if name.endswith(PICTURES):
        return "images"
    if name.endswith(".tar"):
        return "webdataset"
    return "auto" if name.endswith(TABLES) else None


def _pictures(objects: Iterable[Stored]) -> Iterator[pa.Table]:
    pictures = (found for found in objects if found.url.lower().endswith(PICTURES))
    while page := list(islice(pictures, ROWS)):
        urls = [shown_url(found.url) for found in page]
        yield own_table(urls, [found.etag for found in page], [found.size for found in page], [found.url for found in page], None)


def own_table(uris: list[str], etags: list[str | None], sizes: list[Any], files: list[str], offsets: list[int] | None) -> pa.Table:
    """Return a table of inputs without other columns."""
    starts: list[Any] = [None] * len(uris) if offsets is None else list(offsets)
    return pa.table([uris, etags, sizes, files, starts], schema=OWN)


def _manifest_rows(storage: Storage, files: Iterable[Stored], options: BatchOptions) -> Iterator[pa.Table]:
    for found in files:
        for table in _read_tables(storage, found.url, None):
            column = options.uri_column or next((name for name in URI_COLUMNS if name in table.column_names), None)
            if column is None or column not in table.column_names:
                has = ", ".join(table.column_names)
                raise ConfigError(f"{shown_url(found.url)} has no column {column or 'uri'}; it has {has}. Name it with --uri-column.")
            written = [str(value) if value is not None else "" for value in table[column].to_pylist()]
            urls = [value and _absolute(value, found.url) for value in written]
            others = table.drop_columns([column])
            _check_columns(others.column_names, found.url)
            empty: list[Any] = [None] * len(urls)
            yield _beside(own_table(written, empty, empty, urls, None), others)


def _absolute(written: str, manifest: str) -> str:
    """Return the URL of a picture; a path that is not absolute is looked for beside the manifest."""
    return url_of(written) if "://" in written or written.startswith("/") else joined(folder_of(manifest), written)


def _table_rows(storage: Storage, files: Iterable[Stored], image_column: str) -> Iterator[pa.Table]:
    for found in files:
        if not found.url.lower().endswith(".parquet"):
            raise ConfigError(f"{shown_url(found.url)}: pictures in a table are read from Parquet only.")
        at = 0
        for table in _read_tables(storage, found.url, image_column):
            rows = list(range(at, at + len(table)))
            at += len(table)
            uris = [f"{shown_url(found.url)}#{row}" for row in rows]
            others = table.drop_columns([name for name in ("uri",) if name in table.column_names])
            _check_columns(others.column_names, found.url)
            own = own_table(uris, [found.etag] * len(rows), [None] * len(rows), [found.url] * len(rows), rows)
            yield _beside(own, others)


def _members(storage: Storage, files: Iterable[Stored]) -> Iterator[pa.Table]:
    """Yield the pictures of tar files; only their headers are read, as far as the pictures are larger than a buffer."""
    for found in files:
        try:
            with tarfile.open(fileobj=storage.open(found.url), mode="r:") as tar:
                entries = [entry for entry in tar if entry.isfile() and entry.name.lower().endswith(PICTURES)]
        except (tarfile.TarError, OSError) as error:
            raise ConfigError(f"{shown_url(found.url)} is not an uncompressed tar file: {error}.") from error
        for start in range(0, len(entries), ROWS):
            page = entries[start : start + ROWS]
            uris = [f"{shown_url(found.url)}#{entry.name}" for entry in page]
            sizes, offsets = [entry.size for entry in page], [entry.offset_data for entry in page]
            yield own_table(uris, [found.etag] * len(page), sizes, [found.url] * len(page), offsets)


def _read_tables(storage: Storage, url: str, without: str | None) -> Iterator[pa.Table]:
    """Yield the rows of a Parquet, CSV or JSON lines file, without one column."""
    try:
        if url.lower().endswith(".parquet"):
            file = pq.ParquetFile(storage.open(url))
            columns = [name for name in file.schema_arrow.names if name != without]
            for batch in file.iter_batches(ROWS, columns=columns):
                yield pa.Table.from_batches([batch]) if columns else pa.table({"row": pa.nulls(batch.num_rows)}).select([])
        elif url.lower().endswith(".csv"):
            for batch in pyarrow.csv.open_csv(storage.open(url)):
                yield pa.Table.from_batches([batch])
        else:
            table = pyarrow.json.read_json(storage.open(url))
            for start in range(0, len(table), ROWS):
                yield table.slice(start, ROWS)
    except (pa.ArrowException, OSError) as error:
        raise _not_a_table(url, error) from error


def _not_a_table(url: str, error: Exception) -> ConfigError:
    return ConfigError(f"{shown_url(url)} cannot be read as a table: {str(error).splitlines()[0].rstrip('.')}.")


def _image_column(storage: Storage, found: Stored, options: BatchOptions) -> str | None:
    """Return the column that holds pictures: binary, or the struct of bytes and path that Hugging Face's datasets write."""
    if not found.url.lower().endswith(".parquet"):
        return None
    try:
        schema = pq.ParquetFile(storage.open(found.url)).schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise _not_a_table(found.url, error) from error
    names = (options.image_column,) if options.image_column else IMAGE_COLUMNS
    for name in names:
        if name in schema.names and _holds_bytes(schema.field(name).type):
            return name
    if options.image_column:
        raise ConfigError(f"{shown_url(found.url)} has no column {options.image_column} of bytes; it has {', '.join(schema.names)}.")
    return None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _check_columns(names: Iterable[str], url: str) -> None:
    if taken := [name for name in names if name in RESERVED or name in OWN.names]:
        raise ConfigError(f"{shown_url(url)} has columns that the output has too: {', '.join(taken)}. Rename them.")


def _beside(own: pa.Table, others: pa.Table) -> pa.Table:
    for name in others.column_names:
        own = own.append_column(others.schema.field(name), others[name])
    return own
