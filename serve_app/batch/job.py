"""A whole job: list or go on, run what is missing, prove that all is there, and say so. Whatever
engine does the work.

Not here: what tags the chunks (`tagging_job.py`).
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Protocol

import pyarrow as pa

from serve_app import __version__
from serve_app.batch.inputs import find_inputs
from serve_app.batch.options import ERRORS_FROM, BatchOptions
from serve_app.batch.progress import Metrics, Tally, shown_progress
from serve_app.batch.rows import Writing, Written
from serve_app.batch.snapshot import Chunk, Cut, Snapshot, load_snapshot, read_chunk, take_snapshot
from serve_app.batch.storage import joined, shown_url
from serve_app.batch.update import list_again, update_snapshot
from serve_app.batch.verify import Proof, verify, written_names
from serve_app.errors import ServiceError
from serve_app.terminal.printable import json_text, print_line

MANIFEST = "_manifest.json"
SUCCESS = "_SUCCESS"
VERSIONS = ("ray", "torch", "transformers", "pillow", "pyarrow", "obstore")
NOT_TOLD = ("storage", "source", "output")
"""Options that the manifest leaves out: it tells the input, and the others may hold secrets."""


class Engine(Protocol):
    """Something that turns chunks of inputs into written rows."""

    def run(
        self,
        chunks: Iterator[tuple[Chunk, pa.Table]],
        done: Callable[[Written], None],
        tick: Callable[[int], None],
    ) -> None:
        """Run every chunk.

        Args:
            chunks: With their inputs; taken one by one as there is room.
            done: To be called with what each finished chunk counted.
            tick: To be called every second or more often, with the number of encoders that run.

        Raises:
            TaggerError: The job cannot go on; what is written stays.
        """

    def end(self) -> None:
        """Give back what it holds."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended.

    Attributes:
        folder: URL of its output.
        inputs: In all.
        errors: Rows with an error, by code.
        encoded: Inputs that this run did; the others were there already.
        per_second: Inputs a second of this run.
        nbytes: Of the output files.
    """

    folder: str
    inputs: int
    errors: dict[str, int]
    encoded: int
    per_second: float
    nbytes: int


@dataclass(frozen=True, slots=True)
class Job:
    """A job whose folder and engine are known.

    Attributes:
        options: What it was asked for.
        writing: Where and how its rows are written.
        told: What its manifest says besides counts and versions.
        start_engine: Makes the engine once there is something to do.
    """

    options: BatchOptions
    writing: Writing
    told: dict[str, Any]
    start_engine: Callable[[Snapshot], Engine]

    def run(self) -> JobResult:
        """Do the chunks that have no output, and prove that all have one.

        Raises:
            TaggerError: It cannot be done, or too many inputs failed; what is written stays and is
                not done again.
        """
        started = datetime.now(UTC)
        print_line(f"output: {shown_url(self.writing.folder)}", file=sys.stderr)
        snapshot = self._snapshot()
        there = written_names(self.options.storage, self.writing)
        left = [chunk for chunk in snapshot.chunks if chunk.name not in there]
        tally = Tally(snapshot.inputs, done=snapshot.inputs - sum(chunk.count for chunk in left))
        if tally.done:
            print_line(
                f"{tally.done:,} of {tally.inputs:,} inputs are tagged already", file=sys.stderr
            )
        if left:
            self._tag(snapshot, left, tally)
        proof = verify(snapshot, self.writing)
        if proof.wrong:
            self._forget(proof)
        self._delete_superseded(snapshot)
        self._write_manifest(proof, len(snapshot.chunks), started)
        return JobResult(
            self.writing.folder,
            proof.rows,
            proof.errors,
            tally.encoded,
            tally.per_second,
            proof.nbytes,
        )

    def _snapshot(self) -> Snapshot:
        storage = self.options.storage
        folder = self.writing.folder
        known = load_snapshot(storage, folder)
        if known is None:
            cut = Cut(self.options.chunk_size, self.options.partition_by, self.options.limit)
            return take_snapshot(storage, folder, find_inputs(self.options), cut)
        if self.options.update or self.options.retry_errors:
            relisted = (
                list_again(self.options, self.writing, known) if self.options.update else None
            )
            storage.delete(
                joined(folder, SUCCESS)
            )  # not before: if the inputs cannot be listed, the output stays whole
            return update_snapshot(self.options, self.writing, known, relisted)
        return known

    def _delete_superseded(self, snapshot: Snapshot) -> None:
        """Delete the files of chunks that an update has put others in the place of."""
        for name in written_names(self.options.storage, self.writing) - {
            chunk.name for chunk in snapshot.chunks
        }:
            self.options.storage.delete(self.writing.url(name))

    def _tag(self, snapshot: Snapshot, left: list[Chunk], tally: Tally) -> None:
        engine = self.start_engine(snapshot)
        counters = Metrics()
        try:
            with shown_progress(tally) as show:

                def done(written: Written) -> None:
                    tally.add(written)
                    counters.add(written)
                    self._stop_if_wrong(tally)

                def tick(encoders: int) -> None:
                    tally.encoders = encoders
                    counters.show(tally)
                    show()

                engine.run(self._with_rows(left), done, tick)
        finally:
            engine.end()

    def _with_rows(self, chunks: list[Chunk]) -> Iterator[tuple[Chunk, pa.Table]]:
        for chunk in chunks:
            yield chunk, read_chunk(self.options.storage, self.writing.folder, chunk)

    def _stop_if_wrong(self, tally: Tally) -> None:
        most = self.options.max_error_fraction
        if tally.encoded >= ERRORS_FROM and tally.failed > most * tally.encoded:
            raise ServiceError(
                f"{tally.failed:,} of {tally.encoded:,} inputs failed ({_listed(tally.errors)}), more than --max-error-fraction {most:g}; "
                "what is written stays, and the same command goes on."
            )

    def _forget(self, proof: Proof) -> None:
        """Delete outputs that are not what they should be, so that the next run does them."""
        for name in proof.wrong:
            self.options.storage.delete(self.writing.url(name))
        raise ServiceError(
            f"{len(proof.wrong)} output files were missing, damaged or held other rows, such as {proof.wrong[0]}; "
            "they are deleted, run the same command again."
        )

    def _write_manifest(self, proof: Proof, files: int, started: datetime) -> None:
        told = {
            "input": shown_url(self.options.source),
            "inputs": proof.rows,
            "tagged": proof.rows - sum(proof.errors.values()),
            "errors": proof.errors,
            "files": files,
            "bytes": proof.nbytes,
            **self.told,
            "options": {
                key: value
                for key, value in dataclasses.asdict(self.options).items()
                if key not in NOT_TOLD
            },
            "versions": {name: version(name) for name in VERSIONS} | {"siglip-serve": __version__},
            "last_run": {
                "started_at": started.isoformat(),
                "ended_at": datetime.now(UTC).isoformat(),
            },
        }
        storage = self.options.storage
        storage.write(joined(self.writing.folder, MANIFEST), json_text(told, indent=2).encode())
        storage.write(joined(self.writing.folder, SUCCESS), b"")


def _listed(errors: dict[str, int]) -> str:
    return ", ".join(
        f"{count:,} {code}" for code, count in sorted(errors.items(), key=lambda item: -item[1])
    )
