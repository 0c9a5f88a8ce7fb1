"""The rows of the output: their columns, and how tags become them without a Python object for
each.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve_app.batch.input_tables import OWN
from serve_app.batch.options import Compression, OutputFormat
from serve_app.batch.storage import Storage, joined, shown_url
from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.selection import ChosenTags
from serve_app.terminal.printable import json_text
from serve_app.untrusted.bounded_files import parse_json

TAG = pa.struct([("label", pa.string()), ("confidence", pa.float32())])
ERROR = pa.struct([("code", pa.string()), ("message", pa.string())])
REPEATED = ("tags.list.element.label", "error.code", "error.message")
"""Nested columns that are worth a dictionary. Embeddings are not: no value comes twice, and looking
for them takes ten times as long to write and five times to read."""
TAGS_SEEN = 10
"""Tags that an image has on average, whatever `max_tags` allows."""
SUFFIX: dict[OutputFormat, str] = {"parquet": ".parquet", "jsonl": ".jsonl"}


@dataclass(frozen=True, slots=True)
class Facts:
    """What reading some pictures told, one entry each.

    Attributes:
        etags: As read; None where the store has none.
        widths: In pixels, upright; None for a picture that could not be read.
        heights: The same.
        errors: Code and message, or None where all is well so far.
        nbytes: Read in all.
    """

    etags: tuple[str | None, ...]
    widths: tuple[int | None, ...]
    heights: tuple[int | None, ...]
    errors: tuple[tuple[str, str] | None, ...]
    nbytes: int = 0

    @staticmethod
    def join(parts: "Sequence[Facts]") -> "Facts":
        """Return the facts of several blocks as one."""
        return Facts(
            sum((part.etags for part in parts), ()),
            sum((part.widths for part in parts), ()),
            sum((part.heights for part in parts), ()),
            sum((part.errors for part in parts), ()),
            sum(part.nbytes for part in parts),
        )


@dataclass(frozen=True, slots=True)
class Writing:
    """Where and how a chunk's rows are written."""

    storage: Storage
    folder: str
    output_format: OutputFormat
    compression: Compression
    embeddings: bool

    def url(self, name: str) -> str:
        """Return the URL of a chunk's output file."""
        return joined(self.folder, name + SUFFIX[self.output_format])


@dataclass(frozen=True, slots=True)
class Written:
    """What a finished chunk counted: inputs, errors by code, bytes read and bytes written."""

    inputs: int
    errors: dict[str, int]
    bytes_read: int
    bytes_written: int


@dataclass(frozen=True, slots=True)
class Stamp:
    """What every row of a job says of how it was made."""

    checkpoint: str
    revision: str | None
    vocabulary_fingerprint: str


def tag_column(
    chosen: ChosenTags, labels: Sequence[str], places: Sequence[int], count: int
) -> pa.Array:
    """Return `tags` of `count` rows; those whose place is not in `places` have none, which is null.

    Args:
        chosen: Tags of the images in `places`.
        labels: Of the vocabulary.
        places: Rows of the images, rising.
        count: Rows of the column.
    """
    lengths = np.zeros(count, np.int64)
    lengths[list(places)] = chosen.counts
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    known = np.zeros(count, np.bool_)
    known[list(places)] = True
    indices = pa.array(chosen.tags.astype(np.int32))
    names = pa.DictionaryArray.from_arrays(indices, pa.array(labels, pa.string())).cast(pa.string())
    values = pa.StructArray.from_arrays(
        [names, pa.array(chosen.confidences, pa.float32())], fields=list(TAG)
    )
    return pa.ListArray.from_arrays(
        pa.array(offsets), values, type=pa.list_(TAG), mask=pa.array(~known)
    )


def embedding_column(image_embeds: FloatArray, places: Sequence[int], count: int) -> pa.Array:
    """Return `embedding` of `count` rows as float16; null where there is none."""
    width = image_embeds.shape[1]
    values = np.zeros((count, width), np.float16)
    known = np.zeros(count, np.bool_)
    values[list(places)] = image_embeds
    known[list(places)] = True
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)), width, mask=pa.array(~known)
    )


def make_rows(
    inputs: pa.Table, facts: Facts, tags: pa.Array, embeddings: pa.Array | None, stamp: Stamp
) -> pa.Table:
    """Return the output rows of one chunk.

    Args:
        inputs: Their URIs and the columns that pass through.
        facts: What reading them told.
        tags: List of label and confidence; null beside an error.
        embeddings: float16 (D,); None where they are not asked for.
        stamp: The same in every row.
    """
    count = len(inputs)
    errors = [
        None if error is None else {"code": error[0], "message": error[1]} for error in facts.errors
    ]
    columns: dict[str, pa.Array] = {
        "uri": inputs["uri"],
        "etag": pa.array(facts.etags, pa.string()),
        "width": pa.array(facts.widths, pa.int32()),
        "height": pa.array(facts.heights, pa.int32()),
        "tags": tags,
    }
    if embeddings is not None:
        columns["embedding"] = embeddings
    columns |= {
        "error": pa.array(errors, ERROR),
        "checkpoint": pa.array([stamp.checkpoint] * count, pa.string()),
        "revision": pa.array([stamp.revision] * count, pa.string()),
        "vocabulary_fingerprint": pa.array([stamp.vocabulary_fingerprint] * count, pa.string()),
        "tagged_at": pa.array([datetime.now(UTC)] * count, pa.timestamp("us", "UTC")),
    }
    others = [name for name in inputs.column_names if name not in OWN.names]
    return pa.table(columns | {name: inputs[name] for name in others})


def row_bytes(width: int, max_tags: int, with_embedding: bool) -> float:
    """Return about how many bytes of a compressed Parquet file a row takes: measured on files of
    ours, within a factor of two.
    """
    return 60 + 5 * min(max_tags, TAGS_SEEN) + (1.9 * width if with_embedding else 0)


def encode_rows(rows: pa.Table, output_format: OutputFormat, compression: Compression) -> bytes:
    """Return the bytes of one output file."""
    if output_format == "jsonl":
        lines = (json_text(row) for row in rows.to_pylist())
        return "".join(f"{line}\n" for line in lines).encode()
    others = [name for name in rows.column_names if name not in ("embedding", "tags", "error")]
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression=compression, use_dictionary=[*REPEATED, *others])
    return sink.getvalue()


def read_rows(writing: Writing, name: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yield some columns of the rows of an output file."""
    with writing.storage.open(writing.url(name)) as file:
        if writing.output_format == "jsonl":
            for line in file:
                row = parse_json(line, shown_url(writing.url(name)))
                yield {column: row[column] for column in columns}
        else:
            yield from pq.ParquetFile(file).read(columns=columns).to_pylist()
