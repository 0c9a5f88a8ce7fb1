"""Doing a part of a finished job again: inputs that changed, came or went since, and inputs that
failed.

What stays keeps its rows: they are copied from the old file of their chunk to a new one without
what is redone, which goes into chunks of its own. The new index makes all of it valid at once;
files that it does not name are deleted at the end of the job.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve_app.batch.cluster import on_each
from serve_app.batch.inputs import find_inputs
from serve_app.batch.options import BatchOptions
from serve_app.batch.rows import Writing, encode_rows, read_rows
from serve_app.batch.snapshot import Chunk, Cut, Snapshot, SnapshotWriter, read_chunk
from serve_app.batch.storage import shown_url
from serve_app.errors import ConfigError
from serve_app.terminal.printable import printable
from serve_app.untrusted.bounded_files import parse_json
from serve_app.untrusted.image_files import Skipped

COPIES_PER_TASK = 16


class Relisted(NamedTuple):
    """The inputs of a job as they are now.

    Attributes:
        tables: All of them.
        etags: Their ETags by URI.
    """

    tables: list[pa.Table]
    etags: dict[str, str | None]


def list_again(options: BatchOptions, writing: Writing, snapshot: Snapshot) -> Relisted:
    """List the inputs of a finished job again; nothing is written.

    Memory: the URIs and ETags of all inputs are held, some 300 bytes each.

    Raises:
        ConfigError: The inputs cannot be listed, name one twice, or lack one while a part of INPUT
            is unreadable.
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
    """Return the chunks of a job whose inputs were listed again, or whose failed inputs are to be
    tried again.

    Args:
        options: Of the job.
        writing: Where its rows are.
        snapshot: Its chunks so far.
        relisted: The inputs as they are now; None if they stay what they were.

    Raises:
        ConfigError: The rows cannot be read or written.
    """
    listed = None if relisted is None else relisted.tables
    known = None if relisted is None else relisted.etags
    generation = 1 + max((int(chunk.file[:4]) for chunk in snapshot.chunks), default=0)
    first = 1 + max((chunk.number for chunk in snapshot.chunks), default=-1)
    writer = SnapshotWriter(options.storage, writing.folder, first, generation)
    kept = list[Chunk]()
    copies = list[tuple[Chunk, Chunk, tuple[str, ...]]]()
    staying = set[str]()
    again = list[pa.Table]()
    for chunk in snapshot.chunks:
        rows = read_chunk(options.storage, writing.folder, chunk)
        failed = _failed(writing, chunk) if options.retry_errors else set()
        stays = [
            _stays(uri, etag, known, failed)
            for uri, etag in zip(rows["uri"].to_pylist(), rows["etag"].to_pylist(), strict=True)
        ]
        mask = pa.array(stays, pa.bool_())
        trimmed = rows.filter(mask)
        staying.update(trimmed["uri"].to_pylist())
        if len(trimmed) == len(rows):
            kept.append(chunk)
            continue
        if known is None:
            again.append(rows.filter(pc.invert(mask)))
        if len(trimmed):
            writer.add(trimmed, chunk.part, chunk.number)
            copies.append((chunk, writer.chunks[-1], tuple(trimmed["uri"].to_pylist())))
    new = (
        again
        if listed is None
        else [
            table.filter(pa.array([uri not in staying for uri in table["uri"].to_pylist()]))
            for table in listed
        ]
    )
    for rows, part in Cut(options.chunk_size, options.partition_by).chunks(
        iter([table for table in new if len(table)])
    ):
        writer.add(rows, part)
    _copy_all(writing, copies)
    return writer.finish(snapshot.kind, snapshot.image_column, kept)


def _etags(tables: Sequence[pa.Table], options: BatchOptions) -> dict[str, str | None]:
    known: dict[str, str | None] = {}
    for table in tables:
        for uri, etag in zip(table["uri"].to_pylist(), table["etag"].to_pylist(), strict=True):
            if uri in known:
                raise ConfigError(
                    f"{shown_url(options.source)} names {uri} twice; --update needs every input once."
                )
            known[uri] = etag
    return known


def _check_none_is_gone(
    writing: Writing, snapshot: Snapshot, known: Collection[str], skipped: Skipped
) -> None:
    """Refuse to delete rows while a part of INPUT is unreadable, since their images may be in it.

    Raises:
        ConfigError: An input of the snapshot is not among the listed ones.
    """
    for chunk in snapshot.chunks:
        for uri in read_chunk(writing.storage, writing.folder, chunk)["uri"].to_pylist():
            if uri in known:
                continue
            unreadable = ", ".join(map(printable, skipped.unreadable.shown))
            raise ConfigError(
                f"--update: a part of INPUT cannot be read; its rows would be deleted, such as the row of {uri}. "
                f"Make it readable, or move it out of INPUT, then run the command again. Unreadable: {unreadable}."
            )


def _stays(
    uri: str, etag: str | None, known: dict[str, str | None] | None, failed: set[str]
) -> bool:
    return uri not in failed and (known is None or (uri in known and known[uri] == etag))


def _failed(writing: Writing, chunk: Chunk) -> set[str]:
    """Return the URIs of a chunk's inputs that have an error, if it is written."""
    if writing.storage.find(writing.url(chunk.name)) is None:
        return set()
    return {
        str(row["uri"])
        for row in read_rows(writing, chunk.name, ["uri", "error"])
        if row["error"] is not None
    }


def _copy_all(writing: Writing, copies: Sequence[tuple[Chunk, Chunk, tuple[str, ...]]]) -> None:
    groups = [
        copies[start : start + COPIES_PER_TASK] for start in range(0, len(copies), COPIES_PER_TASK)
    ]
    on_each(copy_rows, [(writing, group) for group in groups])


def copy_rows(writing: Writing, copies: Sequence[tuple[Chunk, Chunk, tuple[str, ...]]]) -> None:
    """Write the rows that stay of some chunks to the files of their trimmed chunks; a chunk that
    was never written has none.
    """
    for old, new, uris in copies:
        url = writing.url(old.name)
        if writing.storage.find(url) is None:
            continue
        kept = set(uris)
        if writing.output_format == "jsonl":
            lines = writing.storage.read(url)[0].splitlines(keepends=True)
            data = b"".join(
                line for line in lines if parse_json(line, shown_url(url))["uri"] in kept
            )
        else:
            rows = pq.ParquetFile(writing.storage.open(url)).read()
            data = encode_rows(
                rows.filter(pc.is_in(rows["uri"], pa.array(uris))),
                writing.output_format,
                writing.compression,
            )
        writing.storage.write(writing.url(new.name), data)
