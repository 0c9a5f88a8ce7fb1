"""What every engine of a job does, and whom it reports to.

Not here: the engines (`encoding_engine.py`, `retag.py`, `service_engine.py`).
"""

from collections.abc import Iterator
from typing import Protocol

import pyarrow as pa

from serve_app.batch.output_files import Written
from serve_app.batch.snapshot import Chunk

ChunkInputs = tuple[Chunk, pa.Table]
"""A chunk and its inputs."""


class Watcher(Protocol):
    """Receives reports about a running job."""

    def chunk_done(self, written: Written) -> None:
        """Take note of a finished chunk.

        Raises:
            ServiceError: The job should stop.
        """

    def tick(self, encoders: int) -> None:
        """Take note of the number of running encoders; called at least once a second."""


class Engine(Protocol):
    """Something that turns chunks of inputs into written rows."""

    def run(self, chunks: Iterator[ChunkInputs], watcher: Watcher) -> None:
        """Run every chunk.

        Args:
            chunks: Taken one by one, when there is room for the next.
            watcher: Receives a report about every finished chunk.

        Raises:
            TaggerError: The job cannot continue; what is written stays.
        """

    def end(self) -> None:
        """Release what the engine holds."""
