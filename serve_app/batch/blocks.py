"""Blocks: the part of a chunk that one task prepares and one call encodes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from serve_app.batch.rows import ImageFacts, RowError
from serve_app.errors import InvalidImage
from serve_app.siglip.inputs import FloatArray, ImageBatch, Int64Array

ENDED_ITS_PROCESS = RowError(
    InvalidImage.code, "The image ended the process that decoded or encoded it."
)


@dataclass(frozen=True, slots=True, eq=False)
class PreparedBlock:
    """The pixels of a block: every view of every image, in batches for the vision tower.

    Attributes:
        batches: One for each forward pass.
        views: (n,) number of views of each input; 0 if it could not be prepared.
        order: (V,) for each view in the batches, its index among the views in input order.
    """

    batches: tuple[ImageBatch, ...]
    views: Int64Array
    order: Int64Array

    def __len__(self) -> int:
        """Number of views."""
        return len(self.order)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedBlock:
    """Inputs that went through the vision tower, and their embeddings.

    Attributes:
        images: What is known of each input, including why it failed.
        views: (n,) number of views of each input; 0 if it failed.
        image_embeds: (V, D) float32, unit norm: the views of each input together, in input order.
            The first view of an input is the whole image.
    """

    images: tuple[ImageFacts, ...]
    views: Int64Array
    image_embeds: FloatArray

    @classmethod
    def lost(cls, inputs: pa.Table, width: int) -> "EncodedBlock":
        """Return inputs that were given up because they ended their processes repeatedly."""
        etags = inputs["etag"].to_pylist()
        return cls(
            tuple(ImageFacts(etag, error=ENDED_ITS_PROCESS) for etag in etags),
            np.zeros(len(inputs), np.int64),
            np.zeros((0, width), np.float32),
        )

    @classmethod
    def join(cls, blocks: "Sequence[EncodedBlock]") -> "EncodedBlock":
        """Return consecutive blocks as one."""
        return cls(
            tuple(image for block in blocks for image in block.images),
            np.concatenate([block.views for block in blocks]),
            np.concatenate([block.image_embeds for block in blocks]),
        )
