"""The engine of a job that a running service does: it sends images over HTTP and writes chunks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from serve_app.batch.engine import ChunkInputs, Watcher
from serve_app.batch.image_sender import READ_AT_ONCE, ImageSender
from serve_app.batch.options import BatchOptions
from serve_app.batch.output_files import Writing, Written, write_rows
from serve_app.batch.reading import ReadImage, read_inputs
from serve_app.batch.rows import TAG, ImageFacts, RowError, Stamp, embedding_column, make_rows
from serve_app.batch.snapshot import Chunk, Snapshot
from serve_app.client import AsyncClient, Tagged
from serve_app.client.calls import Outcome
from serve_app.client.options import Options
from serve_app.errors import (
    ConfigError,
    DeadlineExceeded,
    Overloaded,
    ServiceError,
    TaggerError,
    Unauthorized,
    Unavailable,
    UnknownVocabulary,
)
from serve_app.images.decoding import image_size
from serve_app.images.limits import ImageLimits

DEFAULT_CONCURRENCY = 32
"""Default number of images in flight: a few batches of a GPU."""
MAX_CONCURRENCY = 1024
ROWS_BLOCK = 256
"""Inputs that are read together from a table; more, because row groups are read as a whole."""
MAX_CHUNKS = 2
"""Chunks under way: the images of the next one fill the queue while one is finished."""
PATIENCE_S = 600.0
"""How long a request is retried while the service is full or starting; then the job stops."""
MAX_TRIES = 1_000
STOPPING_ERRORS = (Overloaded, Unavailable, DeadlineExceeded, Unauthorized, UnknownVocabulary)
"""Errors that have nothing to do with the image: they stop the job, which can be continued."""
MAX_IMAGE_BYTES = 64 * 2**20
"""Maximum size of an image that is read at all; the service has its own limit."""
TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class TaggingService:
    """The service that tags.

    Attributes:
        url: Its address.
        api_key: Its API key. Default: `SIGLIP_API_KEY` of the environment.
        concurrency: Number of images in flight at the same time.
    """

    url: str
    api_key: str | None = None
    concurrency: int = DEFAULT_CONCURRENCY

    def client(self) -> AsyncClient:
        """Return a client that retries for ten minutes; raises `ConfigError`."""
        if not 1 <= self.concurrency <= MAX_CONCURRENCY:
            raise ConfigError(
                f"--concurrency is {self.concurrency}; "
                f"it must lie between 1 and {MAX_CONCURRENCY:,}."
            )
        return AsyncClient(self.url, self.api_key, max_tries=MAX_TRIES, deadline_s=PATIENCE_S)


@dataclass(frozen=True, slots=True)
class _TaggedInput:
    """What is known of an input, and its tags; None beside an error."""

    facts: ImageFacts
    tagged: Tagged | None


class ServiceEngine:
    """Sends images to a service and writes chunks; see `Engine`.

    The queues of the service bound what is under way: a request that it refuses for now is sent
    again when it says.
    """

    def __init__(
        self,
        service: TaggingService,
        options: BatchOptions,
        writing: Writing,
        stamp: Stamp,
        width: int,
        snapshot: Snapshot,
    ) -> None:
        """Prepare, without a request.

        Args:
            service: Which service.
            options: Options of the job.
            writing: Where and how the rows are written.
            stamp: What the service says about its model and vocabulary.
            width: Width of the embeddings, if the job stores them.
            snapshot: Inputs of the job.
        """
        self._service = service
        self._writing = writing
        self._stamp = stamp
        self._width = width
        self._snapshot = snapshot
        self._storage = options.storage
        self._options: Options = {"quality": options.quality}
        if options.vocabulary is not None:
            self._options["vocabulary"] = options.vocabulary

    def run(self, chunks: Iterator[ChunkInputs], watcher: Watcher) -> None:
        """Run every chunk; see `Engine`."""
        asyncio.run(self._run(chunks, watcher))

    def end(self) -> None:
        """Do nothing; no resource is held."""

    async def _run(self, chunks: Iterator[ChunkInputs], watcher: Watcher) -> None:
        async with self._service.client() as client, _ticking(watcher):
            sender = ImageSender(client, self._service.concurrency)
            running: set[asyncio.Task[Written]] = set()
            try:
                for chunk, inputs in chunks:
                    running.add(asyncio.create_task(self._tag_chunk(sender, chunk, inputs)))
                    if len(running) >= MAX_CHUNKS:
                        running = await _take_finished(running, watcher)
                while running:
                    running = await _take_finished(running, watcher)
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def _tag_chunk(self, sender: ImageSender, chunk: Chunk, inputs: pa.Table) -> Written:
        size = ROWS_BLOCK if self._snapshot.kind == "row" else READ_AT_ONCE
        blocks = [inputs.slice(start, size) for start in range(0, len(inputs), size)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._tag_block(sender, block)) for block in blocks]
        except ExceptionGroup as failed:
            raise _first_of(failed) from None
        results = [result for task in tasks for result in task.result()]
        return await asyncio.to_thread(self._write, chunk, inputs, results)

    async def _tag_block(self, sender: ImageSender, inputs: pa.Table) -> list[_TaggedInput]:
        async with sender.reading:
            reads = await asyncio.to_thread(self._read, inputs)
            size = sender.size.images
            groups = [reads[start : start + size] for start in range(0, len(reads), size)]
            async with asyncio.TaskGroup() as tasks_of_block:
                tasks = [
                    tasks_of_block.create_task(self._tag_group(sender, group)) for group in groups
                ]
        return [result for task in tasks for result in task.result()]

    def _read(self, inputs: pa.Table) -> list[tuple[ReadImage, ImageFacts]]:
        """Read some inputs and the sizes of their images.

        This runs in a thread, because the headers of images may be long.
        """
        snapshot = self._snapshot
        reads = read_inputs(
            inputs, snapshot.kind, snapshot.image_column, self._storage, MAX_IMAGE_BYTES
        )
        return [(read, _facts_of(read)) for read in reads]

    async def _tag_group(
        self, sender: ImageSender, reads: Sequence[tuple[ReadImage, ImageFacts]]
    ) -> list[_TaggedInput]:
        """Tag some inputs in one request."""
        images = [read.data for read, _ in reads if read.error is None]
        outcomes = iter(await sender.tag(images, self._writing.embeddings, self._options))
        return [self._result(facts, read.error or next(outcomes)) for read, facts in reads]

    def _result(self, facts: ImageFacts, outcome: Outcome) -> _TaggedInput:
        """Return an input with its outcome; raise an error that has nothing to do with it."""
        if isinstance(outcome, STOPPING_ERRORS):
            raise outcome
        if isinstance(outcome, TaggerError):
            return _TaggedInput(replace(facts, error=RowError.of(outcome)), None)
        self._check_unchanged(outcome)
        return _TaggedInput(facts, outcome)

    def _check_unchanged(self, tagged: Tagged) -> None:
        """Check that the service still has the vocabulary and checkpoint of the other rows.

        Raises:
            ServiceError: It has others.
        """
        stamp = self._stamp
        found = (tagged.model, tagged.vocabulary_fingerprint)
        if found != (stamp.checkpoint, stamp.vocabulary_fingerprint):
            raise ServiceError(
                "The service's vocabulary or checkpoint has changed since the job began. What is "
                "written stays; the same command begins beside it with the new one."
            )

    def _write(self, chunk: Chunk, inputs: pa.Table, results: Sequence[_TaggedInput]) -> Written:
        tags = [_tags_of(result) for result in results]
        embeddings = _embeddings(results, self._width) if self._writing.embeddings else None
        facts = [result.facts for result in results]
        rows = make_rows(inputs, facts, pa.array(tags, pa.list_(TAG)), embeddings, self._stamp)
        nbytes = sum(one.nbytes for one in facts)
        return write_rows(self._writing, chunk.name, rows, nbytes)


def _facts_of(read: ReadImage) -> ImageFacts:
    """Return what is known of an input; the service says what is wrong with an image."""
    facts = ImageFacts(read.etag, nbytes=len(read.data))
    try:
        width, height = image_size(read.data, ImageLimits())
    except Exception:  # no header, however hostile, may end the job
        return facts
    return replace(facts, width=width, height=height)


def _tags_of(result: _TaggedInput) -> list[tuple[str, float]] | None:
    if result.tagged is None:
        return None
    return [(tag.label, tag.confidence) for tag in result.tagged.tags]


def _embeddings(results: Sequence[_TaggedInput], width: int) -> pa.Array:
    tagged = [(i, result.tagged) for i, result in enumerate(results) if result.tagged is not None]
    values = np.asarray([one.embedding or () for _, one in tagged], np.float32)
    rows = np.array([i for i, _ in tagged], np.int64)
    return embedding_column(values.reshape(-1, width), rows, len(results))


async def _take_finished(
    running: set[asyncio.Task[Written]], watcher: Watcher
) -> set[asyncio.Task[Written]]:
    """Wait for a chunk, report it, and return the others."""
    ended, left = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        watcher.chunk_done(task.result())
    return left


@contextlib.asynccontextmanager
async def _ticking(watcher: Watcher) -> AsyncIterator[None]:
    """Call `tick` every second while the block runs."""

    async def tick_forever() -> None:
        while True:
            watcher.tick(0)
            await asyncio.sleep(TICK_S)

    task = asyncio.create_task(tick_forever())
    try:
        yield
    finally:
        task.cancel()


def _first_of(failed: BaseExceptionGroup) -> BaseException:
    first = failed.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first
