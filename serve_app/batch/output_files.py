"""Output files: where a job writes them, how rows become their bytes, and how they are read back.

Not here: the rows themselves (`rows.py`).
"""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from serve_app.batch.options import BatchOptions, Compression, OutputFormat
from serve_app.batch.storage import Storage
from serve_app.batch.urls import joined, shown_url
from serve_app.terminal.printable import json_text
from serve_app.untrusted.bounded_files import parse_json

SUFFIX: dict[OutputFormat, str] = {"parquet": ".parquet", "jsonl": ".jsonl"}
REPEATED = ("tags.list.element.label", "error.code", "error.message")
"""Nested columns that are worth a dictionary.

Embeddings are not: no value occurs twice, and a dictionary would make them ten times slower to
write and five times slower to read.
"""
TYPICAL_TAGS = 10
"""Number of tags that an image has on average, whatever `max_tags` allows."""


@dataclass(frozen=True, slots=True)
class Writing:
    """Where and how the rows of a job are written."""

    storage: Storage
    folder: str
    output_format: OutputFormat
    compression: Compression
    embeddings: bool

    @classmethod
    def into(cls, folder: str, options: BatchOptions) -> "Writing":
        """Return where and how a job with these options writes into a folder."""
        return cls(
            options.storage,
            folder,
            options.output_format,
            options.compression,
            options.embeddings,
        )

    def url(self, name: str) -> str:
        """Return the URL of a chunk's output file."""
        return joined(self.folder, name + SUFFIX[self.output_format])

    def encode(self, rows: pa.Table) -> bytes:
        """Return the bytes of a file with these rows."""
        if self.output_format == "jsonl":
            lines = (json_text(row) for row in rows.to_pylist())
            return "".join(f"{line}\n" for line in lines).encode()

        flat = [name for name in rows.column_names if name not in ("embedding", "tags", "error")]
        file = io.BytesIO()
        pq.write_table(rows, file, compression=self.compression, use_dictionary=[*REPEATED, *flat])
        return file.getvalue()


@dataclass(frozen=True, slots=True)
class Written:
    """Counts of a finished chunk: inputs, errors by code, bytes read and bytes written."""

    inputs: int
    errors: dict[str, int]
    bytes_read: int
    bytes_written: int


def write_rows(writing: Writing, name: str, rows: pa.Table, bytes_read: int) -> Written:
    """Write the rows of a chunk as one object.

    Args:
        writing: Where and how.
        name: Name of the chunk.
        rows: Its rows.
        bytes_read: Number of bytes that its inputs had, for the counts.

    Raises:
        ConfigError: They cannot be written.
    """
    data = writing.encode(rows)
    writing.storage.write(writing.url(name), data)
    return Written(len(rows), count_errors(rows), bytes_read, len(data))


def count_errors(rows: pa.Table) -> dict[str, int]:
    """Return the number of error rows by code."""
    errors = rows["error"].drop_null().to_pylist()
    return dict(Counter(error["code"] for error in errors))


def read_rows(writing: Writing, name: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yield some columns of the rows of an output file."""
    url = writing.url(name)
    with writing.storage.open(url) as file:
        if writing.output_format == "jsonl":
            for line in file:
                row = parse_json(line, shown_url(url))
                yield {column: row[column] for column in columns}
        else:
            yield from pq.ParquetFile(file).read(columns=columns).to_pylist()


def row_bytes(width: int, max_tags: int, with_embedding: bool) -> float:
    """Return about how many bytes a row takes in a compressed Parquet file.

    Measured on output of this project; within a factor of two.
    """
    embedding_bytes = 1.9 * width if with_embedding else 0
    return 60 + 5 * min(max_tags, TYPICAL_TAGS) + embedding_bytes
