"""Workers that die of certain images, as after a fault in a decoder written in C."""

import os
import signal
from collections.abc import Sequence

import pyarrow as pa

from serve_app.batch.blocks import EncodedBlock, PreparedBlock
from serve_app.batch.encoder_actor import EncoderActor
from serve_app.batch.preparing import Reading, prepare_block
from serve_app.batch.rows import ImageFacts


def prepare_or_die(reading: Reading, inputs: pa.Table) -> tuple[PreparedBlock, list[ImageFacts]]:
    """Prepare a block; end the process if one of its images is called `poison`."""
    if any("poison" in uri for uri in inputs["uri"].to_pylist()):
        os.kill(os.getpid(), signal.SIGKILL)
    return prepare_block(reading, inputs)


class DyingEncoder(EncoderActor):
    """Ends its process at an image that is all black."""

    def encode(self, block: PreparedBlock, images: Sequence[ImageFacts]) -> EncodedBlock:
        if any(
            (batch.pixel_values.reshape(len(batch), -1).max(axis=1) < 8).any()
            for batch in block.batches
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(block, images)
