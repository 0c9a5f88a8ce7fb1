"""A whole job, whatever its engine: list the inputs, tag what is missing, verify the output.

Not here: the jobs themselves, which choose the engine (`tagging_job.py`, `retag.py`,
`through_service.py`).
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from serve_app import __version__
from serve_app.batch.cutting import Cut
from serve_app.batch.engine import ChunkInputs, Engine
from serve_app.batch.inputs import find_inputs
from serve_app.batch.options import ERRORS_FROM, BatchOptions
from serve_app.batch.output_files import Writing, Written
from serve_app.batch.progress import JobProgress, Metrics, shown_progress
from serve_app.batch.snapshot import Chunk, Snapshot, load_snapshot, read_chunk, take_snapshot
from serve_app.batch.update import list_again, update_snapshot
from serve_app.batch.urls import joined, shown_url
from serve_app.batch.verify import Proof, verify, written_names
from serve_app.errors import ServiceError
from serve_app.terminal.printable import json_text, print_line

MANIFEST = "_manifest.json"
SUCCESS = "_SUCCESS"
VERSIONS = ("ray", "torch", "transformers", "pillow", "pyarrow", "obstore")
EXCLUDED_FROM_MANIFEST = ("storage", "source", "output")
"""`source` is recorded separately; the others may contain secrets."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended.

    Attributes:
        folder: URL of the output.
        inputs: Number of inputs.
        errors: Number of error rows by code.
        encoded: Number of inputs that this run tagged; earlier runs tagged the others.
        per_second: Inputs that this run tagged per second.
        nbytes: Size of the output files in bytes.
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
        options: What was requested.
        writing: Where and how its rows are written.
        recorded: What its manifest says in addition to counts and versions.
        start_engine: Starts the engine, once there is something to do.
    """

    options: BatchOptions
    writing: Writing
    recorded: dict[str, Any]
    start_engine: Callable[[Snapshot], Engine]

    def run(self) -> JobResult:
        """Tag the chunks that have no output, and verify that every chunk has one.

        Raises:
            TaggerError: The job cannot be done, or too many inputs failed; what is written stays
                and is not done again.
        """
        started_at = datetime.now(UTC)
        print_line(f"output: {shown_url(self.writing.folder)}", file=sys.stderr)
        snapshot = self._snapshot()
        progress = self._tag_missing(snapshot)

        proof = verify(snapshot, self.writing)
        if proof.wrong:
            self._delete_wrong(proof)
        self._delete_superseded(snapshot)
        self._write_manifest(proof, len(snapshot.chunks), started_at)
        return JobResult(
            self.writing.folder,
            proof.rows,
            proof.errors,
            progress.encoded,
            progress.per_second,
            proof.nbytes,
        )

    def _snapshot(self) -> Snapshot:
        """Return the inputs: those of the earlier run, or newly listed ones."""
        options = self.options
        storage = options.storage
        folder = self.writing.folder
        known = load_snapshot(storage, folder)
        if known is None:
            cut = Cut(options.chunk_size, options.partition_by, options.limit)
            return take_snapshot(storage, folder, find_inputs(options), cut)
        if not options.update and not options.retry_errors:
            return known

        relisted = list_again(options, self.writing, known) if options.update else None
        # not earlier: if the inputs cannot be listed, the output stays complete
        storage.delete(joined(folder, SUCCESS))
        return update_snapshot(options, self.writing, known, relisted)

    def _tag_missing(self, snapshot: Snapshot) -> JobProgress:
        """Tag the chunks that have no output."""
        written = written_names(self.writing)
        missing = [chunk for chunk in snapshot.chunks if chunk.name not in written]
        done = snapshot.inputs - sum(chunk.count for chunk in missing)
        progress = JobProgress(snapshot.inputs, done=done)
        if done:
            print_line(
                f"{done:,} of {progress.inputs:,} inputs are tagged already", file=sys.stderr
            )
        if not missing:
            return progress

        engine = self.start_engine(snapshot)
        try:
            with shown_progress(progress) as show:
                watcher = _JobWatcher(progress, show, self.options.max_error_fraction)
                engine.run(self._with_inputs(missing), watcher)
        finally:
            engine.end()
        return progress

    def _with_inputs(self, chunks: list[Chunk]) -> Iterator[ChunkInputs]:
        for chunk in chunks:
            yield chunk, read_chunk(self.options.storage, self.writing.folder, chunk)

    def _delete_superseded(self, snapshot: Snapshot) -> None:
        """Delete the files of chunks that an update has replaced."""
        current = {chunk.name for chunk in snapshot.chunks}
        for name in written_names(self.writing) - current:
            self.options.storage.delete(self.writing.url(name))

    def _delete_wrong(self, proof: Proof) -> None:
        """Delete output files that failed the verification, so that the next run writes them."""
        for name in proof.wrong:
            self.options.storage.delete(self.writing.url(name))
        raise ServiceError(
            f"{len(proof.wrong)} output files were missing, damaged or held other rows, such as "
            f"{proof.wrong[0]}; they are deleted, run the same command again."
        )

    def _write_manifest(self, proof: Proof, files: int, started_at: datetime) -> None:
        options = dataclasses.asdict(self.options)
        manifest = {
            "input": shown_url(self.options.source),
            "inputs": proof.rows,
            "tagged": proof.rows - sum(proof.errors.values()),
            "errors": proof.errors,
            "files": files,
            "bytes": proof.nbytes,
            **self.recorded,
            "options": {
                key: value for key, value in options.items() if key not in EXCLUDED_FROM_MANIFEST
            },
            "versions": {name: version(name) for name in VERSIONS} | {"siglip-serve": __version__},
            "last_run": {
                "started_at": started_at.isoformat(),
                "ended_at": datetime.now(UTC).isoformat(),
            },
        }
        storage = self.options.storage
        url = joined(self.writing.folder, MANIFEST)
        storage.write(url, json_text(manifest, indent=2).encode())
        storage.write(joined(self.writing.folder, SUCCESS), b"")


class _JobWatcher:
    """Counts what an engine reports, shows it, and stops a job in which too much fails."""

    def __init__(
        self, progress: JobProgress, show: Callable[[], None], max_error_fraction: float
    ) -> None:
        self._progress = progress
        self._show = show
        self._max_error_fraction = max_error_fraction
        self._metrics = Metrics()

    def chunk_done(self, written: Written) -> None:
        self._progress.add(written)
        self._metrics.add(written)
        self._stop_if_too_many_errors()

    def tick(self, encoders: int) -> None:
        self._progress.encoders = encoders
        self._metrics.show(self._progress)
        self._show()

    def _stop_if_too_many_errors(self) -> None:
        progress = self._progress
        if progress.encoded < ERRORS_FROM:
            return
        if progress.failed > self._max_error_fraction * progress.encoded:
            raise ServiceError(
                f"{progress.failed:,} of {progress.encoded:,} inputs failed "
                f"({_listed(progress.errors)}), more than --max-error-fraction "
                f"{self._max_error_fraction:g}; "
                "what is written stays, and the same command goes on."
            )


def _listed(errors: dict[str, int]) -> str:
    most_first = sorted(errors.items(), key=lambda item: -item[1])
    return ", ".join(f"{count:,} {code}" for code, count in most_first)
