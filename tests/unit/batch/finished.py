"""Finished jobs without a model or Ray, as if every image had been tagged `cat`."""

from dataclasses import dataclass, replace

import pyarrow as pa

from serve_app.batch.cutting import Cut
from serve_app.batch.inputs import find_inputs
from serve_app.batch.job import JobResult
from serve_app.batch.options import BatchOptions
from serve_app.batch.output_files import Writing
from serve_app.batch.rows import TAG, ImageFacts, Stamp, make_rows
from serve_app.batch.snapshot import Chunk, Snapshot, read_chunk, take_snapshot
from serve_app.batch.update import list_again, update_snapshot


@dataclass(frozen=True)
class FinishedJob:
    """A job's inputs, and where its rows are."""

    options: BatchOptions
    snapshot: Snapshot
    writing: Writing

    @property
    def result(self) -> JobResult:
        return JobResult(
            self.writing.folder, self.snapshot.inputs, {}, self.snapshot.inputs, 0.0, 0
        )

    def write(self, chunk: Chunk) -> None:
        """Write the rows of a chunk."""
        storage = self.options.storage
        folder = self.writing.folder
        rows = read_chunk(storage, folder, chunk)
        count = len(rows)
        tags = pa.array([[{"label": "cat", "confidence": 0.5}]] * count, pa.list_(TAG))
        made = make_rows(rows, [ImageFacts()] * count, tags, None, Stamp("c", None, "v"))
        storage.write(self.writing.url(chunk.name), self.writing.encode(made))


def finished_job(options: BatchOptions) -> FinishedJob:
    """List the inputs of a job and write their rows."""
    cut = Cut(options.chunk_size, options.partition_by)
    snapshot = take_snapshot(options.storage, options.output, find_inputs(options), cut)
    writing = Writing(
        options.storage, options.output, options.output_format, "zstd", embeddings=False
    )
    job = FinishedJob(options, snapshot, writing)
    for chunk in snapshot.chunks:
        job.write(chunk)
    return job


def updated_chunks(job: FinishedJob) -> Snapshot:
    """Return the chunks of a job after `--update`."""
    options = replace(job.options, update=True)
    return update_snapshot(
        options, job.writing, job.snapshot, list_again(options, job.writing, job.snapshot)
    )
