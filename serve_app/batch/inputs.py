"""What INPUT is, and its inputs: images below a prefix, rows of a manifest or table, tar members.

Every kind becomes tables of the same columns, so that the rest of a job knows only one kind:

    uri     what the output calls the image: its URL, with #member or #row in a shared object
    etag    changes when the image does; None if the store has none
    size    size in bytes, if it is known
    file    URL of the object that is read
    offset  where in that object: the byte at which a tar member starts, or the row of a table

A manifest or table adds its other columns, unchanged.

Not here: rows of manifests and tables (`manifests.py`), members of tar files (`shards.py`).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa

from serve_app.batch.input_tables import Kind, own_table
from serve_app.batch.manifests import TABLES, image_column_of, manifest_inputs, table_inputs
from serve_app.batch.options import BatchOptions, InputFormat
from serve_app.batch.shards import shard_inputs
from serve_app.batch.storage import Storage, Stored
from serve_app.batch.table_rows import ROWS
from serve_app.batch.urls import is_local, shown_url
from serve_app.errors import ConfigError
from serve_app.images.formats import signature_of
from serve_app.untrusted.image_names import SUFFIXES, Skipped, is_image

TAR = ".tar"
SIGNATURE_BYTES = 16
PEEK = 1000
"""Number of objects that decide the format of a prefix; more if none of them can be tagged."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a source holds.

    Attributes:
        kind: How an input is read.
        tables: The inputs, always in the same order; can be read once.
        image_column: Column of a table that contains the images.
        skipped: What INPUT contains that is not used; complete after the tables are read.
    """

    kind: Kind
    tables: Iterator[pa.Table]
    image_column: str | None = None
    skipped: Skipped = field(default_factory=Skipped)


def find_inputs(options: BatchOptions) -> Inputs:
    """Find out what INPUT is and return its inputs.

    Raises:
        ConfigError: It does not exist, contains nothing that can be tagged, or cannot be read.
    """
    storage = options.storage
    source = options.source
    named = named_file(storage, source)
    input_format = options.input_format
    if input_format == "auto":
        input_format = _format_by_name(storage, source, named)

    skipped = Skipped()
    if input_format == "images":
        images = _objects(storage, source, named, is_image, skipped)
        return Inputs("object", _images(images), skipped=skipped)
    if input_format == "webdataset":
        shards = _objects(storage, source, named, _is_tar, skipped)
        tables = shard_inputs(storage, shards, alone=named is not None)
        return Inputs("member", tables, skipped=skipped)
    files = list(_objects(storage, source, named, _is_table, skipped))
    return _inputs_of_tables(options, input_format, files, skipped)


def _inputs_of_tables(
    options: BatchOptions, input_format: InputFormat, files: Sequence[Stored], skipped: Skipped
) -> Inputs:
    """Return the inputs of tables that contain images, or of manifests that name them.

    Raises:
        ConfigError: There are no files, or they have no column of images but must have one.
    """
    storage = options.storage
    if not files:
        raise ConfigError(f"{shown_url(options.source)} holds no {', '.join(TABLES)}.")

    image_column = None
    if input_format != "manifest" or options.image_column:
        image_column = image_column_of(storage, files, options)
    if input_format == "table" and image_column is None:
        raise ConfigError(
            f"{shown_url(files[0].url)} has no column of images; "
            "name it with --image-column, or use --input-format manifest."
        )
    if image_column is not None and options.input_format != "manifest":
        tables = table_inputs(storage, files, image_column)
        return Inputs("row", tables, image_column, skipped)
    return Inputs("object", manifest_inputs(storage, files, options), skipped=skipped)


def named_file(storage: Storage, source: str) -> Stored | None:
    """Return the file that INPUT names; None if it is a folder or prefix.

    A local file may have any suffix. In a bucket, only names with a known suffix are looked up.

    Raises:
        ConfigError: The store does not respond.
    """
    if not is_local(source) and _format_of(source) is None:
        return None
    return storage.find(source)


def _format_by_name(storage: Storage, source: str, named: Stored | None) -> InputFormat:
    """Return the format of INPUT; `auto` stands for a manifest or a table."""
    if named is None:
        return _most_frequent_format(storage, source)
    return _format_of(source) or _format_by_content(storage, source)


def _most_frequent_format(storage: Storage, source: str) -> InputFormat:
    """Return the most frequent format below a prefix.

    Raises:
        ConfigError: Nothing below it can be tagged.
    """
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
            f"{shown_url(source)} is not there or holds nothing that can be tagged: "
            f"images ({', '.join(SUFFIXES)}), tables or manifests ({', '.join(TABLES)}) "
            "or .tar shards."
        )
    return counts.most_common(1)[0][0]


def _format_of(url: str) -> InputFormat | None:
    """Return the format of a file by its suffix; None if that is unknown."""
    if is_image(url):
        return "images"
    if _is_tar(url):
        return "webdataset"
    return "auto" if _is_table(url) else None


def _format_by_content(storage: Storage, source: str) -> InputFormat:
    """Return the format of a file with an unknown suffix.

    Raises:
        ConfigError: It is not an image.
    """
    with storage.open(source) as file:
        start = file.read(SIGNATURE_BYTES)
    if signature_of(start) == "other":
        raise ConfigError(
            f"{shown_url(source)} is no image; "
            "an uncompressed tar file, a table or a manifest needs its suffix."
        )
    return "images"


def _is_tar(url: str) -> bool:
    return url.lower().endswith(TAR)


def _is_table(url: str) -> bool:
    return url.lower().endswith(TABLES)


def _objects(
    storage: Storage,
    source: str,
    named: Stored | None,
    is_wanted: Callable[[str], bool],
    skipped: Skipped,
) -> Iterator[Stored]:
    """Yield the file that INPUT names, or the wanted objects below it.

    What is skipped is reported at the end.
    """
    if named is not None:
        yield named
        return
    for found in storage.list(source, skipped):
        if is_wanted(found.url):
            yield found
        else:
            skipped.add_other(found.url)
    skipped.report(shown_url(source))


def _images(objects: Iterator[Stored]) -> Iterator[pa.Table]:
    while page := list(islice(objects, ROWS)):
        yield own_table(
            [shown_url(found.url) for found in page],
            [found.etag for found in page],
            [found.size for found in page],
            [found.url for found in page],
            None,
        )
