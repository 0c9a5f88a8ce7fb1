"""A job whose pictures are tagged by a running service, over HTTP: no second model is loaded, and
no cluster is needed.

The service's own queues bound what is under way: a request that it refuses for now is sent again
when it says. Its vocabulary must not change on the way: rows of one folder are made by one.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from serve_app.batch.job import Job, JobResult
from serve_app.batch.options import BatchOptions
from serve_app.batch.reading import Read, read_inputs
from serve_app.batch.rows import (
    TAG,
    Facts,
    Stamp,
    Writing,
    Written,
    embedding_column,
    encode_rows,
    make_rows,
)
from serve_app.batch.snapshot import Chunk, Snapshot
from serve_app.batch.tagging_job import folder_name, input_identity, writing_of
from serve_app.client import AsyncClient, ModelCard, Tagged
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
from serve_app.siglip.images.decoding import picture_size
from serve_app.siglip.images.limits import ImageLimits

CONCURRENCY = 32
"""Requests under way unless it is set otherwise: a few batches of a GPU."""
MAX_CONCURRENCY = 1024
BLOCK = 16
ROWS_BLOCK = 256
"""Inputs that are read together; more of a table, whose row groups are read whole."""
CHUNKS = 2
"""Under way: the next one's pictures fill the queue while the last of one are tagged."""
PATIENCE_S = 600.0
"""That a request is sent again while the service is full or starting; then the job stops."""
MAX_TRIES = 1_000
STOPS = (Overloaded, Unavailable, DeadlineExceeded, Unauthorized, UnknownVocabulary)
"""Errors that say nothing of the picture: they stop the job, and the same command goes on."""
MAX_IMAGE_BYTES = 64 * 2**20
"""Of a picture that is read at all; the service has a limit of its own."""
TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class Server:
    """The service that tags.

    Attributes:
        url: Its address.
        api_key: Of the environment (`SIGLIP_API_KEY`) if left out.
        concurrency: Requests under way at the same time.
    """

    url: str
    api_key: str | None = None
    concurrency: int = CONCURRENCY

    def client(self) -> AsyncClient:
        """Return a client of it, which tries for ten minutes; raises `ConfigError`."""
        if not 1 <= self.concurrency <= MAX_CONCURRENCY:
            raise ConfigError(
                f"--concurrency is {self.concurrency}; it must lie between 1 and {MAX_CONCURRENCY:,}."
            )
        return AsyncClient(self.url, self.api_key, max_tries=MAX_TRIES, deadline_s=PATIENCE_S)


def run_service_job(server: Server, options: BatchOptions) -> JobResult:
    """Tag everything that INPUT holds by a service, going on where an earlier run of the same job
    ended; see `run_job`.

    Args:
        server: Which service.
        options: What goes in and out.

    Raises:
        TaggerError: The service does not answer or answers otherwise than before, or what `run_job`
            raises.
    """
    options.check()
    if options.file_bytes is not None:
        raise ConfigError("--file-mb does not go with --through-service; give --chunk-size.")
    stamp, told, width = asyncio.run(_ask_what_is_served(server, options))
    identity = {
        **input_identity(options),
        "rows": [options.output_format, options.embeddings, options.quality],
        "service": told,
    }
    writing = writing_of(options, folder_name(stamp.checkpoint, identity))
    manifest = {
        "checkpoint": {"checkpoint": stamp.checkpoint, "revision": stamp.revision},
        "service": told,
    }
    return Job(
        options, writing, manifest, partial(ServiceEngine, server, options, writing, stamp, width)
    ).run()


class ServiceEngine:
    """Sends picture after picture to a service and writes chunks; see `Engine`."""

    def __init__(
        self,
        server: Server,
        options: BatchOptions,
        writing: Writing,
        stamp: Stamp,
        width: int,
        snapshot: Snapshot,
    ) -> None:
        self._server = server
        self._writing = writing
        self._stamp = stamp
        self._width = width
        self._snapshot = snapshot
        self._storage = options.storage
        self._asked: Options = {"quality": options.quality}
        if options.vocabulary is not None:
            self._asked["vocabulary"] = options.vocabulary

    def run(
        self,
        chunks: Iterator[tuple[Chunk, pa.Table]],
        done: Callable[[Written], None],
        tick: Callable[[int], None],
    ) -> None:
        """Run every chunk; see `Engine`."""
        asyncio.run(self._run(chunks, done, tick))

    def end(self) -> None:
        """Nothing is held."""

    async def _run(
        self,
        chunks: Iterator[tuple[Chunk, pa.Table]],
        done: Callable[[Written], None],
        tick: Callable[[int], None],
    ) -> None:
        sending = asyncio.Semaphore(self._server.concurrency)
        reading = asyncio.Semaphore(self._server.concurrency // BLOCK + 1)
        async with self._server.client() as client, _ticking(tick):
            running: set[asyncio.Task[Written]] = set()
            try:
                for chunk, rows in chunks:
                    running.add(
                        asyncio.create_task(self._chunk(client, chunk, rows, sending, reading))
                    )
                    if len(running) >= CHUNKS:
                        running = await _take_finished(running, done)
                while running:
                    running = await _take_finished(running, done)
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def _chunk(
        self,
        client: AsyncClient,
        chunk: Chunk,
        rows: pa.Table,
        sending: asyncio.Semaphore,
        reading: asyncio.Semaphore,
    ) -> Written:
        size = ROWS_BLOCK if self._snapshot.kind == "row" else BLOCK
        try:
            async with asyncio.TaskGroup() as group:
                parts = [
                    group.create_task(
                        self._block(client, rows.slice(start, size), sending, reading)
                    )
                    for start in range(0, len(rows), size)
                ]
        except ExceptionGroup as failed:
            raise _first_of(failed) from None
        return await asyncio.to_thread(
            self._write, chunk, rows, [outcome for part in parts for outcome in part.result()]
        )

    async def _block(
        self,
        client: AsyncClient,
        rows: pa.Table,
        sending: asyncio.Semaphore,
        reading: asyncio.Semaphore,
    ) -> "list[_Outcome]":
        async with reading:
            reads = await asyncio.to_thread(self._read, rows)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._tag(client, read, size, sending))
                    for read, size in reads
                ]
        return [task.result() for task in tasks]

    def _read(self, rows: pa.Table) -> "list[tuple[Read, _Size]]":
        """Read some inputs and the sizes of their images; in a thread, since headers may be
        long.
        """
        reads = read_inputs(
            rows, self._snapshot.kind, self._snapshot.image_column, self._storage, MAX_IMAGE_BYTES
        )
        return [(read, _size_of(read)) for read in reads]

    async def _tag(
        self, client: AsyncClient, read: Read, size: "_Size", sending: asyncio.Semaphore
    ) -> "_Outcome":
        try:
            if read.error is not None:
                raise read.error
            async with sending:
                answer = await client.tag(
                    read.data, return_embedding=self._writing.embeddings, **self._asked
                )
        except STOPS:
            raise
        except TaggerError as error:
            return _Outcome(error, read.etag, *size, len(read.data))
        if (
            answer.vocabulary_fingerprint != self._stamp.vocabulary_fingerprint
            or answer.model != self._stamp.checkpoint
        ):
            raise ServiceError(
                "The service's vocabulary or checkpoint has changed since the job began. What is written stays; the same command begins "
                "beside it with the new one."
            )
        return _Outcome(answer, read.etag, *size, len(read.data))

    def _write(self, chunk: Chunk, inputs: pa.Table, outcomes: "Sequence[_Outcome]") -> Written:
        errors = tuple(
            (one.answer.code, one.answer.message) if isinstance(one.answer, TaggerError) else None
            for one in outcomes
        )
        answers = [one.answer if isinstance(one.answer, Tagged) else None for one in outcomes]
        tags = [
            None if answer is None else [(tag.label, tag.confidence) for tag in answer.tags]
            for answer in answers
        ]
        facts = Facts(
            tuple(one.etag for one in outcomes),
            tuple(one.width for one in outcomes),
            tuple(one.height for one in outcomes),
            errors,
            sum(one.nbytes for one in outcomes),
        )
        embeddings = _embeddings(answers, self._width) if self._writing.embeddings else None
        rows = make_rows(inputs, facts, pa.array(tags, pa.list_(TAG)), embeddings, self._stamp)
        data = encode_rows(rows, self._writing.output_format, self._writing.compression)
        self._writing.storage.write(self._writing.url(chunk.name), data)
        return Written(
            len(inputs),
            dict(Counter(error[0] for error in errors if error is not None)),
            facts.nbytes,
            len(data),
        )


_Size = tuple[int | None, int | None]


def _size_of(read: Read) -> _Size:
    """Return width and height; what is wrong with an image that has none is the service's to
    say.
    """
    try:
        return picture_size(read.data, ImageLimits())
    except Exception:  # no header, however hostile, ends the job
        return None, None


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one input."""

    answer: Tagged | TaggerError
    etag: str | None
    width: int | None
    height: int | None
    nbytes: int


async def _ask_what_is_served(
    server: Server, options: BatchOptions
) -> tuple[Stamp, dict[str, Any], int]:
    """Return what rows will say, all that they follow from as far as the service tells, and the
    width of embeddings, if asked for.
    """
    async with server.client() as client:
        card: ModelCard = await client.model()
        name = options.vocabulary or card.vocabulary
        known = {found.name: found for found in await client.vocabularies()}
        if name not in known:
            raise ConfigError(f"the service has no vocabulary {name}; it has {', '.join(known)}.")
        vocabulary = await client.vocabulary(name)
        width = len((await client.embed(["a picture"]))[0]) if options.embeddings else 0
    told = {
        "model": card.model,
        "revision": card.revision,
        "dtype": card.dtype,
        "quantization": card.quantization,
        "max_num_patches": card.max_num_patches,
        "confidence_threshold": known[name].confidence_threshold,
        "vocabulary": vocabulary.model_dump(mode="json", exclude={"default"}),
    }
    return Stamp(card.model, card.revision, vocabulary.fingerprint), told, width


def _embeddings(answers: Sequence[Tagged | None], width: int) -> pa.Array:
    rows = [answer.embedding or () for answer in answers if answer is not None]
    places = [at for at, answer in enumerate(answers) if answer is not None]
    return embedding_column(np.asarray(rows, np.float32).reshape(-1, width), places, len(answers))


async def _take_finished(
    running: set[asyncio.Task[Written]], done: Callable[[Written], None]
) -> set[asyncio.Task[Written]]:
    """Wait for a chunk, count it, and return the others."""
    ended, left = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        done(task.result())
    return left


@contextlib.asynccontextmanager
async def _ticking(tick: Callable[[int], None]) -> AsyncIterator[None]:
    async def forever() -> None:
        while True:
            tick(0)
            await asyncio.sleep(TICK_S)

    task = asyncio.create_task(forever())
    try:
        yield
    finally:
        task.cancel()


def _first_of(failed: BaseExceptionGroup) -> BaseException:
    first = failed.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first
