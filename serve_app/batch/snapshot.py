"""The inputs of a job as they were when it first ran, cut into chunks: what a resumed run goes by,
whatever the bucket holds since.

Kept below the output as Parquet files of one row group a chunk, and an index that is written last:
a listing that was cut short has no index and is made again.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve_app.batch.input_tables import DAMAGED, OWN, Kind
from serve_app.batch.inputs import Inputs
from serve_app.batch.storage import Storage, joined, shown_url
from serve_app.batch.table_rows import join_tables, text_column
from serve_app.errors import ConfigError
from serve_app.untrusted.bounded_files import FileProblem, parse_json

FOLDER = "_inputs"
INDEX = "index.json"
CHUNKS_PER_FILE = 256
DIGEST_DIGITS = 10
MAX_INDEX_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Chunk:
    """Inputs that end in one output file.

    Attributes:
        number: Of the chunk in its job.
        digest: Changes with the URIs and ETags of its inputs, and their order.
        count: How many inputs.
        part: The folder of a partitioned output, such as `day=monday`; empty without partitions.
        file: Of the snapshot, which holds its inputs.
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
        """Of its output file, without a suffix; follows from the inputs alone."""
        name = f"part-{self.number:06d}-{self.digest}"
        return f"{self.part}/{name}" if self.part else name


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All chunks of a job.

    Attributes:
        kind: How the inputs are read.
        image_column: Of a table of pictures.
        chunks: In the order of the inputs.
    """

    kind: Kind
    image_column: str | None
    chunks: tuple[Chunk, ...]

    @property
    def inputs(self) -> int:
        """How many there are."""
        return sum(chunk.count for chunk in self.chunks)


def load_snapshot(storage: Storage, folder: str) -> Snapshot | None:
    """Return the snapshot of a job's folder, or None where it has none that is whole.

    Raises:
        ConfigError: It cannot be read.
    """
    url = joined(folder, FOLDER, INDEX)
    if storage.find(url) is None:
        return None
    try:
        read = parse_json(storage.read(url, MAX_INDEX_BYTES)[0], shown_url(url))
        return Snapshot(
            read["kind"], read["image_column"], tuple(Chunk(**chunk) for chunk in read["chunks"])
        )
    except (FileProblem, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{shown_url(url)} is damaged; delete the folder {FOLDER} to have the inputs listed again."
        ) from error


def read_chunk(storage: Storage, folder: str, chunk: Chunk) -> pa.Table:
    """Return the inputs of one chunk; see `inputs.py` for the columns.

    Raises:
        ConfigError: The snapshot cannot be read.
    """
    url = joined(folder, FOLDER, chunk.file)
    try:
        table: pa.Table = pq.ParquetFile(storage.open(url)).read_row_group(chunk.group)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"{shown_url(url)} cannot be read: {str(error).splitlines()[0]}."
        ) from error
    return table


class SnapshotWriter:
    """Writes chunks as they are cut, and the index at the end."""

    def __init__(self, storage: Storage, folder: str, first: int = 0, generation: int = 0) -> None:
        self._storage = storage
        self._folder = folder
        self._generation = generation
        self._next = first
        self._files = 0
        self._sink = io.BytesIO()
        self._groups = 0
        self._writer: pq.ParquetWriter | None = None
        self.chunks: list[Chunk] = []

    def add(self, rows: pa.Table, part: str = "", number: int | None = None) -> None:
        """Write one chunk's inputs."""
        if self._writer is not None and (
            self._groups >= CHUNKS_PER_FILE or self._writer.schema != rows.schema
        ):
            self._finish_file()
        if self._writer is None:
            self._sink = io.BytesIO()
            self._writer = pq.ParquetWriter(self._sink, rows.schema, compression="zstd")
        self._writer.write_table(rows, row_group_size=max(1, len(rows)))
        if number is None:
            number = self._next
            self._next = self._next + 1
        self.chunks.append(
            Chunk(number, digest_of(rows), len(rows), part, self._file_name(), self._groups)
        )
        self._groups += 1

    def finish(self, kind: Kind, image_column: str | None, kept: Iterable[Chunk] = ()) -> Snapshot:
        """Write what is left, and the index: from now on the snapshot counts."""
        self._finish_file()
        snapshot = Snapshot(
            kind, image_column, tuple(sorted([*kept, *self.chunks], key=lambda chunk: chunk.number))
        )
        data = {
            "kind": kind,
            "image_column": image_column,
            "chunks": [asdict(chunk) for chunk in snapshot.chunks],
        }
        self._storage.write(joined(self._folder, FOLDER, INDEX), json.dumps(data).encode())
        return snapshot

    def _file_name(self) -> str:
        return f"{self._generation:04d}-{self._files:05d}.inputs"

    def _finish_file(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._storage.write(joined(self._folder, FOLDER, self._file_name()), self._sink.getvalue())
        self._writer = None
        self._groups = 0
        self._files += 1


def digest_of(rows: pa.Table) -> str:
    """Return ten hex digits that change with the URIs and ETags of some inputs, and their order."""
    digest = hashlib.sha256()
    for uri, etag in zip(rows["uri"].to_pylist(), rows["etag"].to_pylist(), strict=True):
        digest.update(f"{uri}\n{etag or ''}\n".encode())
    return digest.hexdigest()[:DIGEST_DIGITS]


def take_snapshot(storage: Storage, folder: str, inputs: Inputs, cut: "Cut") -> Snapshot:
    """List the inputs, cut them into chunks and write both down.

    Raises:
        ConfigError: There are none, or they cannot be listed or written.
    """
    writer = SnapshotWriter(storage, folder)
    for rows, part in cut.chunks(inputs.tables):
        writer.add(rows, part)
    if not writer.chunks:
        raise ConfigError("INPUT holds nothing that can be tagged.")
    return writer.finish(inputs.kind, inputs.image_column)


@dataclass(frozen=True, slots=True)
class Cut:
    """How inputs become chunks.

    Attributes:
        size: Inputs in a chunk.
        partition_by: Column whose values must not share a chunk.
        limit: Only the first so many inputs.
    """

    size: int
    partition_by: str | None = None
    limit: int | None = None

    def chunks(self, tables: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, str]]:
        """Yield inputs chunk by chunk, each with its part of the output."""
        waiting: dict[str, list[pa.Table]] = {}
        for table, part in self._parts(tables):
            rows = join_tables([*waiting.pop(part, []), table]).combine_chunks()
            while len(rows) >= self.size:
                yield rows.slice(0, self.size), part
                rows = rows.slice(self.size)
            if len(rows):
                waiting[part] = [rows]
        for part, left in sorted(waiting.items()):
            yield left[0], part

    def _parts(self, tables: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, str]]:
        left = self.limit
        lacking: pa.Table | None = None
        has_column = False
        for whole in tables:
            table = whole if left is None else whole.slice(0, left)
            left = None if left is None else left - len(table)
            if self.partition_by is None:
                yield table, ""
            elif self.partition_by in table.column_names:
                has_column = True
                yield from _divided(table, self.partition_by)
            else:
                lacking = table if lacking is None and not _is_damage(table) else lacking
                yield table, _part_of(self.partition_by, None)
            if left == 0:
                break
        if lacking is not None and not has_column:
            names = ", ".join(lacking.column_names)
            raise ConfigError(
                f"--partition-by {self.partition_by}: the inputs have no such column; they have {names}."
            )


def _divided(table: pa.Table, column: str) -> Iterator[tuple[pa.Table, str]]:
    """Yield a table's rows by the values of a column; no value and an empty text share a part, as
    in Hive.
    """
    text = text_column(table[column])
    values = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    for value in sorted(pc.unique(values).to_pylist(), key=str):
        chosen = pc.is_null(values) if value is None else pc.equal(values, value)
        yield table.filter(chosen), _part_of(column, value)


def _is_damage(table: pa.Table) -> bool:
    """Whether the inputs stand for damaged files, which have no columns of their own."""
    return (
        table.column_names == OWN.names
        and len(table) == 1
        and table["offset"][0].as_py() == DAMAGED
    )


def _part_of(column: str, value: str | None) -> str:
    return f"{column}={'__HIVE_DEFAULT_PARTITION__' if value is None else _quoted(value)}"


def _quoted(value: str) -> str:
    """Return a value as Hive writes it in a folder's name."""
    return (
        "".join(
            c if c.isalnum() or c in "-_. " else "".join(f"%{byte:02X}" for byte in c.encode())
            for c in value
        )
        or "%00"
    )
