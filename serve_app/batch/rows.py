"""Output rows: their columns, and how tags become one of them without an object per tag.

Not here: the files that hold the rows (`output_files.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from serve_app.batch.input_tables import OWN
from serve_app.errors import TaggerError
from serve_app.siglip.inputs import FloatArray, Int64Array
from serve_app.tagging.selection import ChosenTags

TAG = pa.struct([("label", pa.string()), ("confidence", pa.float32())])
ERROR = pa.struct([("code", pa.string()), ("message", pa.string())])


class RowError(NamedTuple):
    """Why an input has no tags."""

    code: str
    message: str

    @classmethod
    def of(cls, error: TaggerError) -> "RowError":
        """Return an exception as its row shows it."""
        return cls(error.code, error.message)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of one input apart from its tags.

    Attributes:
        etag: ETag of the object that was read; None if the store has none.
        width: Width of the upright image in pixels; None if it could not be read.
        height: Height of the upright image in pixels; None if it could not be read.
        nbytes: Number of bytes that were read.
        error: Why the input has no tags; None while everything is well.
    """

    etag: str | None = None
    width: int | None = None
    height: int | None = None
    nbytes: int = 0
    error: RowError | None = None


@dataclass(frozen=True, slots=True)
class Stamp:
    """What every row of a job says about how it was made."""

    checkpoint: str
    revision: str | None
    vocabulary_fingerprint: str


def tag_column(chosen: ChosenTags, labels: Sequence[str], rows: Int64Array, count: int) -> pa.Array:
    """Return the column `tags`.

    Args:
        chosen: Tags of the images in `rows`.
        labels: Labels of the vocabulary.
        rows: Rows that have an image, in ascending order; the others are null.
        count: Number of rows.
    """
    has_image = np.zeros(count, np.bool_)
    has_image[rows] = True
    lengths = np.zeros(count, np.int64)
    lengths[rows] = chosen.counts
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)

    # a dictionary holds each label once, so no string is built per tag
    indices = pa.array(chosen.tags.astype(np.int32))
    names = pa.DictionaryArray.from_arrays(indices, pa.array(labels, pa.string())).cast(pa.string())
    confidences = pa.array(chosen.confidences, pa.float32())
    tags = pa.StructArray.from_arrays([names, confidences], fields=list(TAG))
    return pa.ListArray.from_arrays(
        pa.array(offsets), tags, type=pa.list_(TAG), mask=pa.array(~has_image)
    )


def embedding_column(image_embeds: FloatArray, rows: Int64Array, count: int) -> pa.Array:
    """Return the column `embedding`, in float16.

    Args:
        image_embeds: One embedding for each of `rows`.
        rows: Rows that have an image; the others are null.
        count: Number of rows.
    """
    width = image_embeds.shape[1]
    has_image = np.zeros(count, np.bool_)
    has_image[rows] = True
    values = np.zeros((count, width), np.float16)
    values[rows] = image_embeds
    flat = pa.array(values.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, width, mask=pa.array(~has_image))


def make_rows(
    inputs: pa.Table,
    images: Sequence[ImageFacts],
    tags: pa.Array,
    embeddings: pa.Array | None,
    stamp: Stamp,
) -> pa.Table:
    """Return the output rows of some inputs.

    Args:
        inputs: URIs, and the columns that are copied to the output.
        images: What is known of each input.
        tags: Lists of labels and confidences; null beside an error.
        embeddings: float16 (D,); None if the job does not store them.
        stamp: The same in every row.
    """
    count = len(inputs)
    errors = [None if image.error is None else image.error._asdict() for image in images]
    columns: dict[str, pa.Array] = {
        "uri": inputs["uri"],
        "etag": pa.array([image.etag for image in images], pa.string()),
        "width": pa.array([image.width for image in images], pa.int32()),
        "height": pa.array([image.height for image in images], pa.int32()),
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
    copied = [name for name in inputs.column_names if name not in OWN.names]
    return pa.table(columns | {name: inputs[name] for name in copied})
