"""What INPUT is, and its inputs one after the other: images below a prefix, rows of a manifest or
table, members of tar files.

Every kind becomes tables of the same columns, so that all that follows knows one kind only:

    uri     what the output calls it: the URL of the image, with #member or #row where several share
        an object
    etag    changes when the image does; None where the store has none
    size    bytes, where they are known
    file    the object that it is read from
    offset  where in that object: the byte where a tar member starts, or the row of a table

and, of a manifest or table, its other columns as they are.

Not here: rows of manifests and tables (`manifests.py`), members of tar files (`shards.py`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa

from serve_app.batch.input_tables import Kind, own_table
from serve_app.batch.manifests import TABLES, image_column_of, manifest_inputs, table_inputs
from serve_app.batch.options import BatchOptions, InputFormat
from serve_app.batch.shards import shard_inputs
from serve_app.batch.storage import Storage, Stored, shown_url
from serve_app.batch.table_rows import ROWS
from serve_app.batch.urls import is_local
from serve_app.errors import ConfigError
from serve_app.siglip.images.formats import signature_of
from serve_app.untrusted.image_files import SUFFIXES, Skipped, is_image

TAR = ".tar"
SIGNATURE_BYTES = 16
PEEK = 1000
"""Objects that are looked at to tell what a prefix holds; more only if none of them can be
tagged."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a source holds.

    Attributes:
        kind: How an input is read.
        tables: Of the inputs, in an order that does not change; read once.
        image_column: Of a table of images.
        skipped: What INPUT contains that is not used; complete once the tables are read.
    """

    kind: Kind
    tables: Iterator[pa.Table]
    image_column: str | None = None
    skipped: Skipped = field(default_factory=Skipped)


def find_inputs(options: BatchOptions) -> Inputs:
    """Say what INPUT is and return its inputs.

    Raises:
        ConfigError: It is not there, holds nothing that can be tagged, or cannot be read.
    """
    storage = options.storage
    source = options.source
    named = named_file(storage, source)
    requested = options.input_format
    skipped = Skipped()
    if requested == "auto":
        requested = (
            _guess(storage, source)
            if named is None
            else _format_of(source) or _format_by_content(storage, source)
        )
    if requested == "images":
        images = [named] if named is not None else _objects(storage, source, is_image, skipped)
        return Inputs("object", _images(images), skipped=skipped)
    if requested == "webdataset":
        shards = (
            [named]
            if named is not None
            else _objects(storage, source, lambda url: url.lower().endswith(TAR), skipped)
        )
        return Inputs(
            "member", shard_inputs(storage, shards, alone=named is not None), skipped=skipped
        )
    found = (
        [named]
        if named is not None
        else list(_objects(storage, source, lambda url: url.lower().endswith(TABLES), skipped))
    )
    if not found:
        raise ConfigError(f"{shown_url(source)} holds no {', '.join(TABLES)}.")
    image_column = (
        image_column_of(storage, found, options)
        if requested in ("auto", "table") or options.image_column
        else None
    )
    if requested == "table" and image_column is None:
        raise ConfigError(
            f"{shown_url(found[0].url)} has no column of pictures; name it with --image-column, or use --input-format manifest."
        )
    if image_column is not None and options.input_format != "manifest":
        return Inputs("row", table_inputs(storage, found, image_column), image_column, skipped)
    return Inputs("object", manifest_inputs(storage, found, options), skipped=skipped)


def named_file(storage: Storage, source: str) -> Stored | None:
    """Return the file that INPUT names, or None where it is a folder or prefix.

    A local file may have any suffix. In a bucket, only names with a known suffix are looked up.

    Raises:
        ConfigError: The store cannot be asked.
    """
    if not is_local(source) and _format_of(source) is None:
        return None
    return storage.find(source)


def _guess(storage: Storage, source: str) -> InputFormat:
    counts = Counter[InputFormat]()
    skipped = Skipped()
    for number, found in enumerate(storage.list(source, skipped), 1):
        kind = _format_of(found.url)
        if kind is None:
            skipped.add_other(found.url)
        else:
            counts[kind] += 1
        if counts and number >= PEEK:
            break
    if not counts:
        skipped.report(shown_url(source))
        raise ConfigError(
            f"{shown_url(source)} is not there or holds nothing that can be tagged: pictures ({', '.join(SUFFIXES)}), "
            f"tables or manifests ({', '.join(TABLES)}) or .tar shards."
        )
    return counts.most_common(1)[0][0]


def _format_of(url: str) -> InputFormat | None:
    if is_image(url):
        return "images"
    if url.lower().endswith(TAR):
        return "webdataset"
    return "auto" if url.lower().endswith(TABLES) else None


def _format_by_content(storage: Storage, source: str) -> InputFormat:
    """Return the format of a file whose name does not tell it.

    Raises:
        ConfigError: It is no image.
    """
    with storage.open(source) as file:
        start = file.read(SIGNATURE_BYTES)
    if signature_of(start) == "other":
        raise ConfigError(
            f"{shown_url(source)} is no image; an uncompressed tar file, a table or a manifest needs its suffix."
        )
    return "images"


def _objects(
    storage: Storage, source: str, wanted: Callable[[str], bool], skipped: Skipped
) -> Iterator[Stored]:
    """Yield the objects below a prefix that are wanted, and report at the end what is skipped."""
    for found in storage.list(source, skipped):
        if wanted(found.url):
            yield found
        else:
            skipped.add_other(found.url)
    skipped.report(shown_url(source))


def _images(objects: Iterable[Stored]) -> Iterator[pa.Table]:
    images = iter(objects)
    while page := list(islice(images, ROWS)):
        urls = [shown_url(found.url) for found in page]
        yield own_table(
            urls,
            [found.etag for found in page],
            [found.size for found in page],
            [found.url for found in page],
            None,
        )
