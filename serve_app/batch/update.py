"""Does a part of a finished job again: inputs that changed, appeared or disappeared, or failed.

Rows that stay are copied from the old file of their chunk to a new file without the others. Inputs
that are done again go into new chunks. The new index makes all of it valid at once; the job deletes
the files that it does not name at its end.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve_app.batch.cluster import in_groups, on_each
from serve_app.batch.cutting import Cut
from serve_app.batch.inputs import find_inputs
from serve_app.batch.options import BatchOptions
from serve_app.batch.output_files import Writing, read_rows
from serve_app.batch.snapshot import Chunk, Snapshot, SnapshotWriter, read_chunk
from serve_app.batch.urls import shown_url
from serve_app.errors import ConfigError
from serve_app.terminal.printable import printable
from serve_app.untrusted.bounded_files import parse_json
from serve_app.untrusted.image_names import Skipped

COPIES_PER_TASK = 16


class Relisted(NamedTuple):
    """The inputs of a job as they are now.

    Attributes:
        tables: All inputs.
        etags: Their ETags by URI.
    """

    tables: list[pa.Table]
    etags: dict[str, str | None]

    def has(self, uri: str, etag: str | None) -> bool:
        """Return whether an input is still there and unchanged."""
        return uri in self.etags and self.etags[uri] == etag


@dataclass(frozen=True, slots=True)
class _Copy:
    """Rows to copy from the file of a chunk to the file of its trimmed chunk."""

    old: Chunk
    new: Chunk
    uris: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Trimmed:
    """What stays of the chunks of a job.

    Attributes:
        unchanged: Chunks that stay as they are.
        copies: Rows of chunks of which only a part stays.
        uris: URIs of all inputs that stay.
        removed: Inputs that do not stay; empty if the inputs are listed again.
    """

    unchanged: list[Chunk] = field(default_factory=list)
    copies: list[_Copy] = field(default_factory=list)
    uris: set[str] = field(default_factory=set)
    removed: list[pa.Table] = field(default_factory=list)


def list_again(options: BatchOptions, writing: Writing, snapshot: Snapshot) -> Relisted:
    """List the inputs of a finished job again; nothing is written.

    The URIs and ETags of all inputs are held in memory, about 300 bytes each.

    Raises:
        ConfigError: The inputs cannot be listed, one is listed twice, or one is missing while a
            part of INPUT is unreadable.
    """
    inputs = find_inputs(options)
    tables = list(inputs.tables)
    etags = _etags(tables, options)
    if inputs.skipped.unreadable.count:
        _check_none_is_gone(writing, snapshot, etags, inputs.skipped)
    return Relisted(tables, etags)


def update_snapshot(
    options: BatchOptions, writing: Writing, snapshot: Snapshot, relisted: Relisted | None
) -> Snapshot:
    """Return the chunks of a job after an update, and copy the rows that stay.

    Args:
        options: Options of the job; they say whether failed inputs are done again.
        writing: Where its rows are.
        snapshot: Its chunks so far.
        relisted: The inputs as they are now; None if they are not listed again.

    Raises:
        ConfigError: The rows cannot be read or written.
    """
    writer = _next_generation(options, writing, snapshot)
    trimmed = _trim(options, writing, snapshot, relisted, writer)

    again = trimmed.removed if relisted is None else _without(relisted.tables, trimmed.uris)
    cut = Cut(options.chunk_size, options.partition_by)
    for inputs, part in cut.chunks(table for table in again if len(table)):
        writer.add(inputs, part)

    groups = in_groups(trimmed.copies, COPIES_PER_TASK)
    on_each(copy_rows, [(writing, group) for group in groups])
    return writer.finish(snapshot.kind, snapshot.image_column, trimmed.unchanged)


def _next_generation(options: BatchOptions, writing: Writing, snapshot: Snapshot) -> SnapshotWriter:
    """Return a writer whose files and chunks do not collide with those of the snapshot."""
    generation = 1 + max((int(chunk.file[:4]) for chunk in snapshot.chunks), default=0)
    first = 1 + max((chunk.number for chunk in snapshot.chunks), default=-1)
    return SnapshotWriter(options.storage, writing.folder, first, generation)


def _trim(
    options: BatchOptions,
    writing: Writing,
    snapshot: Snapshot,
    relisted: Relisted | None,
    writer: SnapshotWriter,
) -> _Trimmed:
    """Divide the inputs of every chunk into those that stay and those that do not.

    Chunks of which only a part stays are written with that part.
    """
    trimmed = _Trimmed()
    for chunk in snapshot.chunks:
        inputs = read_chunk(options.storage, writing.folder, chunk)
        failed = _failed(writing, chunk) if options.retry_errors else set()
        mask = pa.array(_stay(inputs, relisted, failed), pa.bool_())
        kept = inputs.filter(mask)
        uris = kept["uri"].to_pylist()
        trimmed.uris.update(uris)
        if len(kept) == len(inputs):
            trimmed.unchanged.append(chunk)
            continue

        if relisted is None:  # otherwise the listing has what is done again
            trimmed.removed.append(inputs.filter(pc.invert(mask)))
        if len(kept):
            writer.add(kept, chunk.part, chunk.number)
            trimmed.copies.append(_Copy(chunk, writer.chunks[-1], tuple(uris)))
    return trimmed


def _stay(inputs: pa.Table, relisted: Relisted | None, failed: Collection[str]) -> list[bool]:
    """Return for each input whether its row stays."""
    return [
        uri not in failed and (relisted is None or relisted.has(uri, etag))
        for uri, etag in _uris_and_etags(inputs)
    ]


def _without(tables: Sequence[pa.Table], uris: Collection[str]) -> list[pa.Table]:
    """Return the inputs whose URIs are not among those of `uris`."""
    return [
        table.filter(pa.array([uri not in uris for uri in table["uri"].to_pylist()], pa.bool_()))
        for table in tables
    ]


def _uris_and_etags(inputs: pa.Table) -> Iterator[tuple[str, str | None]]:
    return zip(inputs["uri"].to_pylist(), inputs["etag"].to_pylist(), strict=True)


def _etags(tables: Sequence[pa.Table], options: BatchOptions) -> dict[str, str | None]:
    etags: dict[str, str | None] = {}
    for table in tables:
        for uri, etag in _uris_and_etags(table):
            if uri in etags:
                raise ConfigError(
                    f"{shown_url(options.source)} names {uri} twice; "
                    "--update needs every input once."
                )
            etags[uri] = etag
    return etags


def _check_none_is_gone(
    writing: Writing, snapshot: Snapshot, listed: Collection[str], skipped: Skipped
) -> None:
    """Refuse to delete rows while a part of INPUT is unreadable: their images may be in it.

    Raises:
        ConfigError: An input of the snapshot is not among the listed ones.
    """
    for chunk in snapshot.chunks:
        for uri in read_chunk(writing.storage, writing.folder, chunk)["uri"].to_pylist():
            if uri in listed:
                continue
            unreadable = ", ".join(map(printable, skipped.unreadable.shown))
            raise ConfigError(
                "--update: a part of INPUT cannot be read; its rows would be deleted, such as "
                f"the row of {uri}. Make it readable, or move it out of INPUT, then run the "
                f"command again. Unreadable: {unreadable}."
            )


def _failed(writing: Writing, chunk: Chunk) -> set[str]:
    """Return the URIs of the inputs of a chunk that have an error row."""
    if writing.storage.find(writing.url(chunk.name)) is None:
        return set()
    rows = read_rows(writing, chunk.name, ["uri", "error"])
    return {str(row["uri"]) for row in rows if row["error"] is not None}


def copy_rows(writing: Writing, copies: Sequence[_Copy]) -> None:
    """Copy the rows that stay; a chunk that was never written has none."""
    for copy in copies:
        url = writing.url(copy.old.name)
        if writing.storage.find(url) is None:
            continue
        if writing.output_format == "jsonl":
            data = _lines_of(writing, url, set(copy.uris))
        else:
            rows = pq.ParquetFile(writing.storage.open(url)).read()
            data = writing.encode(rows.filter(pc.is_in(rows["uri"], pa.array(copy.uris))))
        writing.storage.write(writing.url(copy.new.name), data)


def _lines_of(writing: Writing, url: str, uris: Collection[str]) -> bytes:
    """Return the lines of a JSON Lines file whose URIs are among those of `uris`."""
    data, _ = writing.storage.read(url)
    lines = data.splitlines(keepends=True)
    return b"".join(line for line in lines if parse_json(line, shown_url(url))["uri"] in uris)
