"""The proof at the end: every input has its row, once, and nothing else is there."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from serve_app.batch.cluster import on_each
from serve_app.batch.rows import ERROR, SUFFIX, Writing
from serve_app.batch.snapshot import Chunk, Snapshot, read_chunk
from serve_app.batch.storage import Storage, StoreFailed, shown_url
from serve_app.batch.urls import path_below
from serve_app.errors import ConfigError

CHUNKS_PER_TASK = 32
PROVED = pa.schema([("uri", pa.string()), ("error", ERROR)])
"""Columns that are compared.

Their types are given, since pyarrow takes text that looks like a date for one.
"""
MIN_JSON_BLOCK_BYTES = 2**20
MAX_JSON_BLOCK_BYTES = 2**31 - 1
"""pyarrow refuses a line that is longer than a block."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What reading the output told.

    Attributes:
        rows: In all.
        errors: Of them by code.
        nbytes: Of the output files.
        wrong: Names of chunks whose file is missing, damaged or has other rows than its inputs.
    """

    rows: int
    errors: dict[str, int]
    nbytes: int
    wrong: tuple[str, ...]


def written_names(storage: Storage, writing: Writing) -> set[str]:
    """Return the names of the chunks that have an output."""
    suffix = SUFFIX[writing.output_format]
    paths = (path_below(found.url, writing.folder) for found in storage.list(writing.folder))
    return {
        path.removesuffix(suffix) for path in paths if path is not None and _is_part(path, suffix)
    }


def _is_part(url: str, suffix: str) -> bool:
    return url.endswith(suffix) and url.rsplit("/", 1)[-1].startswith("part-")


def verify(snapshot: Snapshot, writing: Writing) -> Proof:
    """Compare the output with the snapshot, chunk by chunk, on the whole cluster if there is one.

    Chunks share no input, so chunks that are equal make outputs that are: an anti-join without a
    shuffle.
    """
    groups = [
        snapshot.chunks[start : start + CHUNKS_PER_TASK]
        for start in range(0, len(snapshot.chunks), CHUNKS_PER_TASK)
    ]
    return join_proofs(on_each(check_chunks, [(group, writing) for group in groups]))


def join_proofs(proofs: Iterable[Proof]) -> Proof:
    """Return several proofs as one."""
    known = list(proofs)
    errors = sum((Counter(proof.errors) for proof in known), Counter[str]())
    wrong = tuple(name for proof in known for name in proof.wrong)
    return Proof(
        sum(proof.rows for proof in known),
        dict(errors),
        sum(proof.nbytes for proof in known),
        wrong,
    )


def check_chunks(chunks: Sequence[Chunk], writing: Writing) -> Proof:
    """Compare the rows of some chunks with their inputs.

    Raises:
        ConfigError: The store does not answer; that says nothing of the rows.
    """
    rows = 0
    nbytes = 0
    errors = Counter[str]()
    wrong = []
    for chunk in chunks:
        wanted = read_chunk(writing.storage, writing.folder, chunk)["uri"]
        read = _read_output(writing, chunk)
        if read is None or read[0]["uri"].to_pylist() != wanted.to_pylist():
            wrong.append(chunk.name)
            continue
        found, size = read
        rows = rows + len(found)
        nbytes = nbytes + size
        errors.update(error["code"] for error in found["error"].to_pylist() if error is not None)
    return Proof(rows, dict(errors), nbytes, tuple(wrong))


def _read_output(writing: Writing, chunk: Chunk) -> tuple[pa.Table, int] | None:
    """Return the rows of a chunk and the size of their file; None where there is none, or it is
    damaged.
    """
    url = writing.url(chunk.name)
    found = writing.storage.find(url)
    if found is None:
        return None
    try:
        file = writing.storage.open(url)
        if writing.output_format == "jsonl":
            return _read_json_lines(file, found.size), found.size
        return pq.ParquetFile(file).read(columns=["uri", "error"]), found.size
    except StoreFailed as error:
        raise ConfigError(f"{shown_url(url)} cannot be read: {error}.") from error
    except (pa.ArrowException, OSError, KeyError):
        return None


def _read_json_lines(file: IO[bytes], size: int) -> pa.Table:
    block_size = min(max(size, MIN_JSON_BLOCK_BYTES), MAX_JSON_BLOCK_BYTES)
    reading = pyarrow.json.ReadOptions(block_size=block_size)
    parsing = pyarrow.json.ParseOptions(explicit_schema=PROVED, unexpected_field_behavior="ignore")
    return pyarrow.json.read_json(file, reading, parsing)
