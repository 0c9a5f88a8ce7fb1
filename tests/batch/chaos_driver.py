"""The driver of the chaos test, a process of its own: an ordinary job whose encoders note how many
images they are given.
"""

import os
import sys
from pathlib import Path

from serve_app.batch import tagging_job
from serve_app.batch.options import BatchOptions
from serve_app.batch.storage import url_of
from serve_app.batch.tagging_job import run_job
from serve_app.batch.workers import EncodedBlock, Encoder, PreparedBlock
from serve_app.demo.settings import demo_config

LEDGER = "CHAOS_LEDGER"
CHUNK = 8


class CountingEncoder(Encoder):
    """Notes every block before it is encoded; one short line is appended whole whoever else
    writes.
    """

    def encode(self, block: PreparedBlock) -> EncodedBlock:
        with Path(os.environ[LEDGER]).open("a") as ledger:
            ledger.write(f"{len(block.rows)}\n")
        return super().encode(block)


def main(source: str, output: str, address: str) -> None:
    tagging_job.Encoder = CountingEncoder  # type: ignore[misc]
    result = run_job(
        demo_config(), BatchOptions(url_of(source), url_of(output), chunk_size=CHUNK), address
    )
    print(f"ended with {result.inputs}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
