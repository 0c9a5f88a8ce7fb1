"""The driver of the chaos test, a process of its own.

It runs an ordinary job whose encoders record how many images they get.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from serve_app.batch import tagging_job
from serve_app.batch.blocks import EncodedBlock, PreparedBlock
from serve_app.batch.encoder_actor import EncoderActor
from serve_app.batch.options import BatchOptions
from serve_app.batch.rows import ImageFacts
from serve_app.batch.storage import url_of
from serve_app.batch.tagging_job import run_job
from serve_app.demo.settings import demo_config

LEDGER = "CHAOS_LEDGER"
CHUNK = 8


class CountingEncoder(EncoderActor):
    """Records every block before it is encoded; a short line is appended whole, whoever writes."""

    def encode(self, block: PreparedBlock, images: Sequence[ImageFacts]) -> EncodedBlock:
        with Path(os.environ[LEDGER]).open("a") as ledger:
            ledger.write(f"{len(block)}\n")
        return super().encode(block, images)


def main(source: str, output: str, address: str) -> None:
    tagging_job.EncoderActor = CountingEncoder  # type: ignore[misc]
    result = run_job(
        demo_config(), BatchOptions(url_of(source), url_of(output), chunk_size=CHUNK), address
    )
    print(f"ended with {result.inputs}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
