"""The inputs of a job as they were when it first ran, cut into chunks.

A resumed run uses them, whatever the bucket contains by then. They are stored below the output, as
Parquet files with one row group per chunk. The index is written last: a listing that was
interrupted has no index and is done again.

Not here: how inputs are cut (`cutting.py`).
"""

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from serve_app.batch.cutting import Cut
from serve_app.batch.input_tables import Kind
from serve_app.batch.inputs import Inputs
from serve_app.batch.storage import Storage
from serve_app.batch.urls import joined, shown_url
from serve_app.errors import ConfigError
from serve_app.untrusted.bounded_files import FileProblem, parse_json

FOLDER = "_inputs"
INDEX = "index.json"
CHUNKS_PER_FILE = 256
DIGEST_DIGITS = 10
MAX_INDEX_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Chunk:
    """Inputs whose rows form one output file.

    Attributes:
        number: Number of the chunk in its job.
        digest: Changes with the URIs and ETags of its inputs, and their order.
        count: Number of inputs.
        part: Folder of a partitioned output, such as `day=monday`; empty without partitions.
        file: File of the snapshot that contains its inputs.
        group: Row group in that file.
    """

    number: int
    digest: str
    count: int
    part: str
    file: str
    group: int

    @property
    def name(self) -> str:
        """Name of its output file without the suffix; determined by the inputs alone."""
        name = f"part-{self.number:06d}-{self.digest}"
        return f"{self.part}/{name}" if self.part else name


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All chunks of a job.

    Attributes:
        kind: How the inputs are read.
        image_column: Column of a table that contains the images.
        chunks: In the order of the inputs.
    """

    kind: Kind
    image_column: str | None
    chunks: tuple[Chunk, ...]

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return sum(chunk.count for chunk in self.chunks)


def load_snapshot(storage: Storage, folder: str) -> Snapshot | None:
    """Return the snapshot of a job's folder; None if there is none or it is incomplete.

    Raises:
        ConfigError: It cannot be read.
    """
    url = joined(folder, FOLDER, INDEX)
    if storage.find(url) is None:
        return None
    try:
        data, _ = storage.read(url, MAX_INDEX_BYTES)
        index = parse_json(data, shown_url(url))
        chunks = tuple(Chunk(**chunk) for chunk in index["chunks"])
        return Snapshot(index["kind"], index["image_column"], chunks)
    except (FileProblem, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{shown_url(url)} is damaged; "
            f"delete the folder {FOLDER} to have the inputs listed again."
        ) from error


def snapshot_of_finished(storage: Storage, folder: str) -> Snapshot:
    """Return the snapshot of a finished job.

    Raises:
        ConfigError: There is none, or it cannot be read.
    """
    snapshot = load_snapshot(storage, folder)
    if snapshot is None:
        raise ConfigError(f"{shown_url(folder)} holds no inputs; run the job again.")
    return snapshot


def read_chunk(storage: Storage, folder: str, chunk: Chunk) -> pa.Table:
    """Return the inputs of one chunk; see `inputs.py` for the columns.

    Raises:
        ConfigError: The snapshot cannot be read.
    """
    url = joined(folder, FOLDER, chunk.file)
    try:
        inputs: pa.Table = pq.ParquetFile(storage.open(url)).read_row_group(chunk.group)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{shown_url(url)} cannot be read: {reason}.") from error
    return inputs


class SnapshotWriter:
    """Writes chunks as they are cut, and the index at the end."""

    def __init__(self, storage: Storage, folder: str, first: int = 0, generation: int = 0) -> None:
        """Start with no chunks.

        Args:
            storage: How the output is written.
            folder: URL of the job's output.
            first: Number of the first chunk.
            generation: Number of updates before this one; keeps the names of files apart.
        """
        self._storage = storage
        self._folder = folder
        self._generation = generation
        self._next_number = first
        self._files = 0
        self._groups = 0
        self._buffer = io.BytesIO()
        self._writer: pq.ParquetWriter | None = None
        self.chunks: list[Chunk] = []

    def add(self, inputs: pa.Table, part: str = "", number: int | None = None) -> None:
        """Write the inputs of one chunk.

        Args:
            inputs: The inputs.
            part: Folder of a partitioned output.
            number: Number of the chunk. Default: the next one.
        """
        writer = self._writer_for(inputs.schema)
        writer.write_table(inputs, row_group_size=max(1, len(inputs)))
        if number is None:
            number = self._next_number
            self._next_number += 1
        self.chunks.append(
            Chunk(number, digest_of(inputs), len(inputs), part, self._file_name(), self._groups)
        )
        self._groups += 1

    def finish(
        self, kind: Kind, image_column: str | None, unchanged: Iterable[Chunk] = ()
    ) -> Snapshot:
        """Write the rest and the index, which makes the snapshot valid.

        Args:
            kind: How the inputs are read.
            image_column: Column of a table that contains the images.
            unchanged: Chunks of an earlier snapshot that stay valid.
        """
        self._finish_file()
        chunks = sorted([*unchanged, *self.chunks], key=lambda chunk: chunk.number)
        index = {
            "kind": kind,
            "image_column": image_column,
            "chunks": [asdict(chunk) for chunk in chunks],
        }
        url = joined(self._folder, FOLDER, INDEX)
        self._storage.write(url, json.dumps(index).encode())
        return Snapshot(kind, image_column, tuple(chunks))

    def _writer_for(self, schema: pa.Schema) -> pq.ParquetWriter:
        """Return the writer of the current file, or of a new one if that is full or differs."""
        is_full = self._groups >= CHUNKS_PER_FILE
        if self._writer is not None and (is_full or self._writer.schema != schema):
            self._finish_file()
        if self._writer is None:
            self._buffer = io.BytesIO()
            self._writer = pq.ParquetWriter(self._buffer, schema, compression="zstd")
        return self._writer

    def _file_name(self) -> str:
        return f"{self._generation:04d}-{self._files:05d}.inputs"

    def _finish_file(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        url = joined(self._folder, FOLDER, self._file_name())
        self._storage.write(url, self._buffer.getvalue())
        self._writer = None
        self._groups = 0
        self._files += 1


def digest_of(inputs: pa.Table) -> str:
    """Return hex digits that change with the URIs and ETags of some inputs, and their order."""
    digest = hashlib.sha256()
    for uri, etag in zip(inputs["uri"].to_pylist(), inputs["etag"].to_pylist(), strict=True):
        digest.update(f"{uri}\n{etag or ''}\n".encode())
    return digest.hexdigest()[:DIGEST_DIGITS]


def take_snapshot(storage: Storage, folder: str, inputs: Inputs, cut: Cut) -> Snapshot:
    """List the inputs, cut them into chunks and store both.

    Raises:
        ConfigError: There are no inputs, or they cannot be listed or written.
    """
    writer = SnapshotWriter(storage, folder)
    for chunk, part in cut.chunks(inputs.tables):
        writer.add(chunk, part)
    if not writer.chunks:
        raise ConfigError("INPUT holds nothing that can be tagged.")
    return writer.finish(inputs.kind, inputs.image_column)
