"""Workers that die of certain pictures, as a fault in a decoder written in C would have it."""

import os
import signal

import pyarrow as pa

from serve_app.batch.rows import Facts
from serve_app.batch.workers import EncodedBlock, Encoder, PreparedBlock, Reading, prepare_block


def prepare_or_die(reading: Reading, rows: pa.Table) -> tuple[PreparedBlock, Facts]:
    """Prepare a block, unless one of its pictures is called `poison`: then end the process at
    once.
    """
    if any("poison" in uri for uri in rows["uri"].to_pylist()):
        os.kill(os.getpid(), signal.SIGKILL)
    return prepare_block(reading, rows)


class DyingEncoder(Encoder):
    """Ends its process at a picture that is all black."""

    def encode(self, block: PreparedBlock) -> EncodedBlock:
        if any(
            (batch.pixel_values.reshape(len(batch), -1).max(axis=1) < 8).any()
            for batch in block.batches
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(block)
