"""Encodes a batch with one outcome per image, so that a bad image fails only itself."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from serve_app.errors import InferenceFailed, TaggerError
from serve_app.siglip.inputs import FloatArray, ImageBatch, collate

logger = logging.getLogger(__name__)

NOT_ENCODED = "The model could not encode this image."


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """The embeddings of a batch, and the errors of single images.

    Attributes:
        image_embeds: (B, D) float32, unit norm; the row of a failed image has no meaning.
        errors: B entries, None for each encoded image.
    """

    image_embeds: FloatArray
    errors: tuple[TaggerError | None, ...]

    def __len__(self) -> int:
        return len(self.errors)

    def part(self, start: int, stop: int) -> "EncodedImages":
        """Return the outcomes of the images from `start` to `stop`, exclusive."""
        return EncodedImages(self.image_embeds[start:stop], self.errors[start:stop])


def encode_apart(
    encode: Callable[[ImageBatch], FloatArray], batch: ImageBatch, width: int
) -> EncodedImages:
    """Encode a batch; if that fails, halve it until the failing images are isolated.

    Args:
        encode: Returns image_embeds (B, D) of a batch, or raises.
        batch: The images.
        width: D, for the rows of failed images.
    """
    try:
        embeds = encode(batch)
    except Exception:
        logger.warning("encoding a batch of %d failed", len(batch), exc_info=len(batch) == 1)
        if len(batch) == 1:
            return EncodedImages(np.zeros((1, width), np.float32), (InferenceFailed(NOT_ENCODED),))

        images = batch.split()
        middle = len(batch) // 2
        halves = [
            encode_apart(encode, collate(half), width)
            for half in (images[:middle], images[middle:])
        ]
        return EncodedImages(
            np.concatenate([h.image_embeds for h in halves]), halves[0].errors + halves[1].errors
        )

    return outcomes_of(embeds)


def outcomes_of(embeds: FloatArray) -> EncodedImages:
    """Return embeddings (B, D) with an error for each row that is not finite."""
    # A row that contains NaN or infinity has no finite sum.
    finite: list[bool] = np.isfinite(embeds.sum(axis=1)).tolist()
    return EncodedImages(
        embeds, tuple(None if ok else InferenceFailed(NOT_ENCODED) for ok in finite)
    )
