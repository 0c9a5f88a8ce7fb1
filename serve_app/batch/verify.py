"""Verifies the output of a job: every input has exactly one row, and there are no other rows."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from serve_app.batch.cluster import in_groups, on_each
from serve_app.batch.output_files import SUFFIX, Writing, count_errors
from serve_app.batch.rows import ERROR
from serve_app.batch.snapshot import Chunk, Snapshot, read_chunk
from serve_app.batch.store_errors import StoreFailed
from serve_app.batch.urls import path_below, shown_url
from serve_app.errors import ConfigError

CHUNKS_PER_TASK = 32
COMPARED = pa.schema([("uri", pa.string()), ("error", ERROR)])
"""Columns that are compared.

Their types are fixed, because pyarrow reads text that looks like a date as one.
"""
MIN_JSON_BLOCK_BYTES = 2**20
MAX_JSON_BLOCK_BYTES = 2**31 - 1
"""pyarrow refuses a line that is longer than a block."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What the output contains.

    Attributes:
        rows: Number of rows.
        errors: Number of error rows by code.
        nbytes: Size of the output files in bytes.
        wrong: Names of chunks whose file is missing, damaged or has other rows than its inputs.
    """

    rows: int
    errors: dict[str, int]
    nbytes: int
    wrong: tuple[str, ...]


def written_names(writing: Writing) -> set[str]:
    """Return the names of the chunks that have an output file."""
    suffix = SUFFIX[writing.output_format]
    found = writing.storage.list(writing.folder)
    paths = (path_below(one.url, writing.folder) for one in found)
    return {
        path.removesuffix(suffix) for path in paths if path is not None and _is_part(path, suffix)
    }


def _is_part(path: str, suffix: str) -> bool:
    return path.endswith(suffix) and path.rsplit("/", 1)[-1].startswith("part-")


def verify(snapshot: Snapshot, writing: Writing) -> Proof:
    """Compare the output with the snapshot, on the whole cluster if there is one.

    Chunks share no inputs. So it is enough to compare chunk by chunk, without a shuffle.
    """
    groups = in_groups(snapshot.chunks, CHUNKS_PER_TASK)
    return join_proofs(on_each(check_chunks, [(group, writing) for group in groups]))


def join_proofs(proofs: Iterable[Proof]) -> Proof:
    """Return several proofs as one."""
    known = list(proofs)
    errors = sum((Counter(proof.errors) for proof in known), Counter[str]())
    return Proof(
        sum(proof.rows for proof in known),
        dict(errors),
        sum(proof.nbytes for proof in known),
        tuple(name for proof in known for name in proof.wrong),
    )


def check_chunks(chunks: Sequence[Chunk], writing: Writing) -> Proof:
    """Compare the rows of some chunks with their inputs.

    Raises:
        ConfigError: The store does not respond; the rows may be intact.
    """
    return join_proofs(_check_chunk(chunk, writing) for chunk in chunks)


def _check_chunk(chunk: Chunk, writing: Writing) -> Proof:
    inputs = read_chunk(writing.storage, writing.folder, chunk)
    output = _read_output(writing, chunk)
    if output is None:
        return Proof(0, {}, 0, (chunk.name,))
    rows, nbytes = output
    if rows["uri"].to_pylist() != inputs["uri"].to_pylist():
        return Proof(0, {}, 0, (chunk.name,))
    return Proof(len(rows), count_errors(rows), nbytes, ())


def _read_output(writing: Writing, chunk: Chunk) -> tuple[pa.Table, int] | None:
    """Return the rows of a chunk and the size of their file; None if it is missing or damaged."""
    url = writing.url(chunk.name)
    found = writing.storage.find(url)
    if found is None:
        return None
    try:
        file = writing.storage.open(url)
        if writing.output_format == "jsonl":
            return _read_json_lines(file, found.size), found.size
        return pq.ParquetFile(file).read(columns=COMPARED.names), found.size
    except StoreFailed as error:
        raise ConfigError(f"{shown_url(url)} cannot be read: {error}.") from error
    except (pa.ArrowException, OSError, KeyError):
        return None


def _read_json_lines(file: IO[bytes], size: int) -> pa.Table:
    block_size = min(max(size, MIN_JSON_BLOCK_BYTES), MAX_JSON_BLOCK_BYTES)
    reading = pyarrow.json.ReadOptions(block_size=block_size)
    parsing = pyarrow.json.ParseOptions(
        explicit_schema=COMPARED, unexpected_field_behavior="ignore"
    )
    return pyarrow.json.read_json(file, reading, parsing)
