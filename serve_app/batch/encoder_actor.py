"""The second stage of a job: an actor encodes prepared blocks with the vision tower.

Not here: how many actors there are (`encoder_pool.py`).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from serve_app.batch.blocks import EncodedBlock, PreparedBlock
from serve_app.batch.preparing import Model
from serve_app.batch.rows import ImageFacts, RowError
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.outcomes import EncodedImages, encode_apart
from serve_app.siglip.precision import Precision


class EncoderActor:
    """The vision tower in a process of its own, on a share of a GPU or on some cores."""

    def __init__(self, model: Model, num_threads: int, gpu_share: float) -> None:
        """Load the tower and check it.

        Args:
            model: What to load.
            num_threads: Threads of a forward pass on the CPU; 0 leaves the number to torch.
            gpu_share: Part of a GPU that this process may fill, in [0, 1].

        Raises:
            ConfigError: The checkpoint or a setting cannot work.
        """
        # torch takes seconds to import, and the driver, which imports this module, never uses it
        from serve_app.towers.starting import start_image_tower

        checkpoint = load_checkpoint(model.source, model.revision)
        self._tower = start_image_tower(checkpoint, model.precision, num_threads, gpu_share)

    def ready(self) -> Precision:
        """Return what the tower runs as, once it is loaded."""
        return self._tower.runtime

    def encode(self, block: PreparedBlock, images: Sequence[ImageFacts]) -> EncodedBlock:
        """Encode a block.

        Args:
            block: Its pixels.
            images: What is known of its inputs so far.
        """
        width = self._tower.checkpoint.embedding_width
        parts = [encode_apart(self._tower.encode, batch, width) for batch in block.batches]
        return _in_input_order(parts, block, images, width)


def _in_input_order(
    parts: Sequence[EncodedImages], block: PreparedBlock, images: Sequence[ImageFacts], width: int
) -> EncodedBlock:
    """Put views back in input order; an input fails as a whole if one of its views does."""
    image_embeds = np.zeros((len(block), width), np.float32)
    if parts:
        image_embeds[block.order] = np.concatenate([part.image_embeds for part in parts])

    inputs = np.repeat(np.arange(len(images)), block.views)
    errors = [error for part in parts for error in part.errors]
    failed = {
        int(inputs[i]): RowError.of(error)
        for i, error in zip(block.order, errors, strict=True)
        if error is not None
    }
    views = block.views.copy()
    views[list(failed)] = 0
    return EncodedBlock(
        tuple(
            replace(image, error=failed[i]) if i in failed else image
            for i, image in enumerate(images)
        ),
        views,
        image_embeds[~np.isin(inputs, list(failed))],
    )
