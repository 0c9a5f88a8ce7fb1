"""The first stage of a job: a task reads the images of a block and prepares them for the tower."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from serve_app.batch.blocks import PreparedBlock
from serve_app.batch.input_tables import Kind
from serve_app.batch.reading import ReadImage, read_inputs
from serve_app.batch.rows import ImageFacts, RowError
from serve_app.batch.storage import Storage
from serve_app.errors import TaggerError
from serve_app.images.decoding import image_size
from serve_app.images.limits import ImageLimits
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.inputs import Int64Array, PreparedImage, collate
from serve_app.siglip.precision import Precision
from serve_app.siglip.prepare import ImagePreparer
from serve_app.tagging.choices import Quality


@dataclass(frozen=True, slots=True)
class Model:
    """The checkpoint, how its vision tower runs, and the width of its embeddings."""

    source: str
    revision: str | None
    precision: Precision
    batch_size: int
    max_num_patches: int
    width: int


@dataclass(frozen=True, slots=True)
class Reading:
    """How inputs become prepared images."""

    model: Model
    limits: ImageLimits
    max_image_bytes: int
    quality: Quality
    kind: Kind
    image_column: str | None
    storage: Storage


def prepare_block(reading: Reading, inputs: pa.Table) -> tuple[PreparedBlock, list[ImageFacts]]:
    """Read and prepare the images of some inputs.

    An image that cannot be read or prepared has its error in its facts and no view in the block.
    """
    preparer = _preparer(reading.model, reading.limits)
    reads = read_inputs(
        inputs, reading.kind, reading.image_column, reading.storage, reading.max_image_bytes
    )
    prepared = [_prepare(read, preparer, reading) for read in reads]

    views = [view for views, _ in prepared for view in views]
    order = _batch_order(views)
    size = reading.model.batch_size
    batches = tuple(
        collate([views[i] for i in order[start : start + size]])
        for start in range(0, len(views), size)
    )
    counts = np.array([len(views) for views, _ in prepared], np.int64)
    return PreparedBlock(batches, counts, order), [facts for _, facts in prepared]


def _batch_order(views: Sequence[PreparedImage]) -> Int64Array:
    """Return the order in which views are batched.

    NaFlex images are padded to the longest of their batch, so images with about as many patches
    share a batch.
    """
    if not views or views[0].spatial_shape is None:
        return np.arange(len(views))
    num_patches = np.array([len(view.pixel_values) for view in views])
    return np.argsort(-num_patches, kind="stable")


def _prepare(
    read: ReadImage, preparer: ImagePreparer, reading: Reading
) -> tuple[list[PreparedImage], ImageFacts]:
    """Return the views of an image, and what is known of it; no view if there is an error."""
    facts = ImageFacts(read.etag, nbytes=len(read.data))
    try:
        if read.error is not None:
            raise read.error
        width, height = image_size(read.data, reading.limits)
        facts = replace(facts, width=width, height=height)
        if reading.quality == "standard":
            return [preparer.prepare(read.data)], facts
        return preparer.prepare_views(read.data), facts
    except TaggerError as error:
        return [], replace(facts, error=RowError.of(error))


@functools.cache
def _preparer(model: Model, limits: ImageLimits) -> ImagePreparer:
    checkpoint = load_checkpoint(model.source, model.revision)
    return ImagePreparer(checkpoint, limits, model.max_num_patches)
