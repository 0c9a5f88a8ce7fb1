"""What INPUT is, and its inputs one after the other: pictures below a prefix, rows of a manifest or table, members of tar files.

Every kind becomes tables of the same columns, so that all that follows knows one kind only:

    uri     what the output calls it: the URL of the picture, with #member or #row where several share an object
    etag    changes when the picture does; None where the store has none
    size    bytes, where they are known
    file    the object that it is read from
    offset  where in that object: the byte where a tar member starts, or the row of a table

and, of a manifest or table, its other columns as they are.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from serve_app.batch.damage import DamagedFiles
from serve_app.batch.input_tables import OWN, Kind, own_table
from serve_app.batch.options import BatchOptions, InputFormat
from serve_app.batch.storage import Storage, Stored, folder_of, joined, shown_url, url_of
from serve_app.batch.tables import ROWS, DamagedTable, parquet_schema, read_tables
from serve_app.batch.tar_members import Damage, Member, read_members
from serve_app.errors import ConfigError
from serve_app.picture_files import SUFFIXES
from serve_app.terminal import printable

logger = logging.getLogger(__name__)

RESERVED = ("etag", "width", "height", "tags", "embedding", "error", "checkpoint", "revision", "vocabulary_fingerprint", "tagged_at")
"""Names of output columns, which a manifest's columns must not have."""
URI_COLUMNS = ("uri", "url", "image_url", "path", "file", "filename", "key")
IMAGE_COLUMNS = ("image", "image_bytes", "bytes", "jpg", "png", "webp", "content", "data")
TABLES = (".parquet", ".csv", ".jsonl", ".ndjson")
PICTURES = (*SUFFIXES, ".avif", ".heic", ".heif")
SURROGATE = re.compile("[\ud800-\udfff]")
"""Of text that is not Unicode."""
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
    alone = bool(files)
    if asked == "images":
        return Inputs("object", _pictures(objects))
    if asked == "webdataset":
        return Inputs("member", _members(storage, (found for found in objects if found.url.lower().endswith(".tar")), alone))
    found = [found for found in objects if found.url.lower().endswith(TABLES)]
    if not found:
        raise ConfigError(f"{shown_url(source)} holds no {', '.join(TABLES)}.")
    image_column = _image_column(storage, found, options) if asked in ("auto", "table") or options.image_column else None
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


def _manifest_rows(storage: Storage, files: Sequence[Stored], options: BatchOptions) -> Iterator[pa.Table]:
    damaged = DamagedFiles(alone=len(files) == 1)
    for found in files:
        try:
            for table in read_tables(storage, found, None):
                inputs = _manifest_inputs(table, found.url, options)
                damaged.readable += 1
                yield inputs
        except DamagedTable as error:
            damaged.add(found, error)
    yield from damaged.rows("object")


def _manifest_inputs(table: pa.Table, url: str, options: BatchOptions) -> pa.Table:
    """Return the inputs that some rows of a manifest name.

    Raises:
        DamagedTable: It has no column of URIs.
        ConfigError: It has columns that the output has too.
    """
    column = options.uri_column or next((name for name in URI_COLUMNS if name in table.column_names), None)
    if column is None or column not in table.column_names:
        has = ", ".join(table.column_names)
        raise DamagedTable(f"{shown_url(url)} has no column {column or 'uri'}; it has {has}. Name it with --uri-column.")
    written = [_text_of(value) for value in table[column].to_pylist()]
    # a name that is not Unicode is in no URL; reading it is an error of its row
    urls = ["" if not value or SURROGATE.search(value) else _absolute(value, url) for value in written]
    uris = [printable(value) for value in written]
    others = table.drop_columns([column])
    _check_columns(others.column_names, url)
    empty: list[Any] = [None] * len(urls)
    return _beside(own_table(uris, empty, empty, urls, None), others)


def _text_of(value: Any) -> str:
    """Return what a cell of a manifest names; pyarrow reads a column as bytes where one of them is not UTF-8."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return "" if value is None else str(value)


def _absolute(written: str, manifest: str) -> str:
    """Return the URL of a picture; a path that is not absolute is looked for beside the manifest."""
    return url_of(written) if "://" in written or written.startswith("/") else joined(folder_of(manifest), written)


def _table_rows(storage: Storage, files: Sequence[Stored], image_column: str) -> Iterator[pa.Table]:
    damaged = DamagedFiles(alone=len(files) == 1)
    for found in files:
        if not found.url.lower().endswith(".parquet"):
            raise ConfigError(f"{shown_url(found.url)}: pictures in a table are read from Parquet only.")
        at = 0
        try:
            for table in read_tables(storage, found, image_column):
                inputs = _row_inputs(table, found, at)
                damaged.readable += 1
                at += len(table)
                yield inputs
        except DamagedTable as error:
            damaged.add(found, error)
    yield from damaged.rows("row")


def _row_inputs(table: pa.Table, found: Stored, first: int) -> pa.Table:
    """Return some rows of a table of pictures as inputs, where `first` rows came before them."""
    rows = list(range(first, first + len(table)))
    uris = [f"{shown_url(found.url)}#{row}" for row in rows]
    others = table.drop_columns([name for name in ("uri",) if name in table.column_names])
    _check_columns(others.column_names, found.url)
    own = own_table(uris, [found.etag] * len(rows), [None] * len(rows), [found.url] * len(rows), rows)
    return _beside(own, others)


def _members(storage: Storage, files: Iterable[Stored], alone: bool) -> Iterator[pa.Table]:
    """Yield the pictures of tar files; only their headers are read, as far as the pictures are larger than a buffer.

    What stands before the damage of a tar file is read, and the rest of it is one input with an error.
    """
    damaged = DamagedFiles(alone)
    for found in files:
        skipped = Counter[str]()
        pictures = _pictures_of(storage, found, skipped, damaged)
        while page := list(islice(pictures, ROWS)):
            damaged.readable += 1
            uris = [f"{shown_url(found.url)}#{printable(member.name)}" for member in page]
            sizes, offsets = [member.size for member in page], [member.offset for member in page]
            yield own_table(uris, [found.etag] * len(page), sizes, [found.url] * len(page), offsets)
        if skipped:
            counts = ", ".join(f"{count:,} ({why})" for why, count in skipped.most_common())
            logger.warning("%s: members that are left out: %s", shown_url(found.url), counts)
    yield from damaged.rows("member")


def _pictures_of(storage: Storage, found: Stored, skipped: Counter[str], damaged: DamagedFiles) -> Iterator[Member]:
    """Yield the pictures of one tar file, and note what is skipped and damaged.

    Raises:
        ConfigError: The store does not answer.
    """
    try:
        with storage.open(found.url) as file:
            for member in read_members(file, found.size):
                if isinstance(member, Damage):
                    why = f"{member.why}, at byte {member.offset:,}"
                    if not member.offset:
                        why = f"it is not an uncompressed tar file: {member.why}"
                    damaged.add(found, DamagedTable(f"{shown_url(found.url)}: {why}."), member.offset)
                elif member.name.lower().endswith(PICTURES):
                    if member.skipped:
                        skipped[member.skipped] += 1
                    else:
                        yield member
    except OSError as error:
        raise ConfigError(f"{shown_url(found.url)} cannot be read: {error}.") from error


def _image_column(storage: Storage, files: Sequence[Stored], options: BatchOptions) -> str | None:
    """Return the column that holds pictures: binary, or the struct of bytes and path that Hugging Face's datasets write.

    The first table that can be read decides.
    """
    for found in files:
        if not found.url.lower().endswith(".parquet"):
            return None
        try:
            schema = parquet_schema(storage, found.url)
        except DamagedTable:
            if found is files[-1]:
                raise
            continue
        names = (options.image_column,) if options.image_column else IMAGE_COLUMNS
        for name in names:
            if name in schema.names and _holds_bytes(schema.field(name).type):
                return name
        if options.image_column:
            raise ConfigError(f"{shown_url(found.url)} has no column {options.image_column} of bytes; it has {', '.join(schema.names)}.")
        return None
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
