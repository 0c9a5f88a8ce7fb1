"""The vision towers' inputs as numpy arrays: one prepared image, and a batch of them.

Letters of shapes in the whole package:
    B batch · H W pixels · N patches · P patch side in pixels · D embedding width · T tags ·
    K prompts per tag · L tokens

Not here: preparing images (`preprocess.py`, `naflex.py`), encoding them (`towers/tower.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Uint8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """One image, resized but not normalized.

    Attributes:
        pixel_values: (H, W, 3) uint8 for fixed resolution, (N, P·P·3) uint8 for NaFlex.
        spatial_shape: Rows and columns of the patch grid, with rows × columns = N; None for fixed
            resolution.
    """

    pixel_values: Uint8Array
    spatial_shape: tuple[int, int] | None = None

    @property
    def nbytes(self) -> int:
        """Size of the pixels in bytes."""
        return self.pixel_values.nbytes


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """The images of one forward pass; NaFlex images are padded to the longest one.

    Attributes:
        pixel_values: (B, H, W, 3) uint8, or (B, N, P·P·3) uint8 for NaFlex.
        pixel_attention_mask: (B, N) int32, 1 patch 0 pad; NaFlex only.
        spatial_shapes: (B, 2) int64, rows and columns; NaFlex only.
    """

    pixel_values: Uint8Array
    pixel_attention_mask: Int32Array | None = None
    spatial_shapes: Int64Array | None = None

    def __len__(self) -> int:
        return len(self.pixel_values)

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        arrays = (self.pixel_values, self.pixel_attention_mask, self.spatial_shapes)
        return sum(array.nbytes for array in arrays if array is not None)

    def split(self) -> list[PreparedImage]:
        """Return the single images without padding."""
        if self.spatial_shapes is None:
            return [PreparedImage(pixels) for pixels in self.pixel_values]
        shapes = [(int(rows), int(columns)) for rows, columns in self.spatial_shapes]
        pairs = zip(self.pixel_values, shapes, strict=True)
        return [
            PreparedImage(pixels[: rows * columns], (rows, columns))
            for pixels, (rows, columns) in pairs
        ]


def collate(images: Sequence[PreparedImage]) -> ImageBatch:
    """Stack images of one family into a batch; NaFlex images are padded to the longest one.

    Padding to `max_num_patches` would give the same embeddings (within 2e-6) for more work.

    Raises:
        ValueError: There are no images, their families differ, or their fixed sizes differ.
    """
    if not images:
        raise ValueError("a batch needs at least one image")
    if len({image.spatial_shape is None for image in images}) > 1:
        raise ValueError("fixed-resolution and NaFlex images cannot share a batch")
    if images[0].spatial_shape is None:
        return ImageBatch(np.stack([image.pixel_values for image in images]))

    lengths = [len(image.pixel_values) for image in images]
    width = images[0].pixel_values.shape[1]
    pixel_values = np.zeros((len(images), max(lengths), width), np.uint8)
    mask = np.zeros((len(images), max(lengths)), np.int32)
    for row, (image, length) in enumerate(zip(images, lengths, strict=True)):
        pixel_values[row, :length] = image.pixel_values
        mask[row, :length] = 1
    shapes = np.array([image.spatial_shape for image in images], np.int64)
    return ImageBatch(pixel_values, mask, shapes)


def concatenate(batches: Sequence[ImageBatch]) -> ImageBatch:
    """Join batches of one family into one, in order."""
    if len(batches) == 1:
        return batches[0]
    if batches[0].spatial_shapes is None:
        return ImageBatch(np.concatenate([batch.pixel_values for batch in batches]))
    return collate([image for batch in batches for image in batch.split()])
