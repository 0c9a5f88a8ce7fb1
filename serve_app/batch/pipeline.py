"""The engine of a job: blocks of inputs are prepared by tasks, encoded by actors, and written chunk
by chunk.

The driver moves references, never pixels. What is under way is bounded in blocks, so memory does
not grow with the bucket; the oldest chunk goes first, so little that was encoded is lost when
everything dies.
"""

import heapq
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayActorError, RayError, RaySystemError

from serve_app.batch.cluster import cause_of
from serve_app.batch.encoders import DEPTH, EncoderPool
from serve_app.batch.rows import Writing, Written
from serve_app.batch.snapshot import Chunk
from serve_app.batch.workers import (
    EncodedBlock,
    Reading,
    Scoring,
    finish_chunk,
    lost_facts,
    prepare_block,
)
from serve_app.errors import ServiceError

logger = logging.getLogger(__name__)

MAX_FINISHING = 4
"""Chunks that are scored and written at the same time, for each encoder."""
SPLIT_AFTER = 2
LOST_AFTER = 3
"""Processes that a block may end: then it is halved, and a single input is given up as an error of
its own."""
MAX_CHUNK_ATTEMPTS = 5
WAIT_S = 1.0


@dataclass(eq=False, slots=True)
class _Open:
    """A chunk that is under way."""

    chunk: Chunk
    rows: pa.Table
    order: int
    blocks: "list[_Block]" = field(default_factory=list)
    attempts: int = 0

    def parts(self) -> list[Any]:
        """Return facts and embeddings of its blocks by turns, as `finish_chunk` takes them."""
        return [part for block in self.blocks for part in (block.facts, block.encoded)]


@dataclass(eq=False, slots=True)
class _Block:
    """Some inputs of a chunk, and what has become of them."""

    chunk: _Open
    start: int
    count: int
    attempts: int = 0
    pixels: Any = None
    facts: Any = None
    encoded: Any = None

    def __lt__(self, other: "_Block") -> bool:
        return (self.chunk.order, self.start) < (other.chunk.order, other.start)

    @property
    def rows(self) -> pa.Table:
        """Its inputs."""
        return self.chunk.rows.slice(self.start, self.count)


@dataclass(frozen=True, slots=True)
class Flow:
    """How much is under way at a time.

    Attributes:
        block_images: Inputs that one task prepares and one call encodes.
        prepare_cpus: Of a preparing task.
        preparing: Tasks that prepare at the same time.
    """

    block_images: int
    prepare_cpus: float
    preparing: int


class Pipeline:
    """Runs chunks through the cluster until all are written."""

    def __init__(
        self, reading: Reading, writing: Writing, scoring: Scoring, pool: EncoderPool, flow: Flow
    ) -> None:
        self._reading = reading
        self._writing = writing
        self._pool = pool
        self._flow = flow
        self._scoring = ray.put(scoring)
        options = {
            "num_cpus": flow.prepare_cpus,
            "num_returns": 2,
            "max_retries": 0,
            "scheduling_strategy": "SPREAD",
        }
        self._prepare = ray.remote(prepare_block).options(**options)
        self._finish = ray.remote(finish_chunk).options(
            num_cpus=0, max_retries=0
        )  # a moment's work beside a chunk's encoding
        self._to_prepare: list[_Block] = []
        self._to_encode: list[_Block] = []
        self._under_way: dict[Any, tuple[Callable[..., None], Any]] = {}
        self._preparing = self._finishing = 0
        self._orders = itertools.count()
        self._exhausted = False

    def run(
        self,
        chunks: Iterator[tuple[Chunk, pa.Table]],
        done: Callable[[Written], None],
        tick: Callable[[int], None],
    ) -> None:
        """Run every chunk.

        Args:
            chunks: With their inputs; taken one by one as there is room.
            done: Called with what each finished chunk counted.
            tick: Called every second or more often with the number of encoders that run.

        Raises:
            TaggerError: The job cannot go on; what is written stays.
        """
        while True:
            self._fill(chunks)
            self._dispatch()
            waiting = [*self._under_way, *self._pool.starting()]
            if (
                self._exhausted
                and not self._under_way
                and not self._to_prepare
                and not self._to_encode
            ):
                return
            ended, _ = ray.wait(waiting, num_returns=1, timeout=WAIT_S)
            if ended:
                ended, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
            for reference in ended:
                self._take(reference, done)
            tick(self._pool.running)

    def end(self) -> None:
        """End the encoders."""
        self._pool.end()

    def _fill(self, chunks: Iterator[tuple[Chunk, pa.Table]]) -> None:
        """Start preparing as many blocks as may be under way."""
        ahead = self._flow.preparing + DEPTH * len(self._pool)
        while (
            self._preparing < self._flow.preparing
            and self._preparing + len(self._to_encode) < ahead
        ):
            if not self._to_prepare and not self._open_next(chunks):
                return
            block = heapq.heappop(self._to_prepare)
            block.pixels, block.facts = self._prepare.remote(self._reading, block.rows)
            self._preparing += 1
            self._under_way[block.facts] = (self._prepared, block)

    def _open_next(self, chunks: Iterator[tuple[Chunk, pa.Table]]) -> bool:
        if self._exhausted or self._finishing >= MAX_FINISHING * max(1, len(self._pool)):
            return False
        following = next(chunks, None)
        if following is None:
            self._exhausted = True
            return False
        opened = _Open(*following, next(self._orders))
        size = self._flow.block_images
        opened.blocks = [
            _Block(opened, start, min(size, len(opened.rows) - start))
            for start in range(0, len(opened.rows), size)
        ]
        for block in opened.blocks:
            heapq.heappush(self._to_prepare, block)
        return True

    def _dispatch(self) -> None:
        while self._to_encode and self._pool.has_room():
            block = heapq.heappop(self._to_encode)
            self._under_way[self._pool.encode(block, block.pixels)] = (self._encoded, block)
        self._pool.grow(len(self._to_encode))
        if self._exhausted and not self._to_prepare:
            self._pool.shrink(self._preparing + len(self._to_encode))

    def _take(self, reference: Any, done: Callable[[Written], None]) -> None:
        if reference not in self._under_way:
            self._pool.started(reference)
            return
        handle, subject = self._under_way.pop(reference)
        handle(subject, reference, done)

    def _prepared(self, block: _Block, reference: Any, done: Callable[[Written], None]) -> None:
        self._preparing -= 1
        try:
            ray.get(reference)  # small; raises what the task raised
        except RayError as error:
            self._again(block, error)
            return
        heapq.heappush(self._to_encode, block)

    def _encoded(self, block: _Block, reference: Any, done: Callable[[Written], None]) -> None:
        try:
            encoded = ray.get(reference)
        except RayError as error:
            if isinstance(error, RayActorError):
                self._pool.lost(block)
            self._pool.ended(block)
            self._again(block, error)
            return
        self._pool.ended(block)
        # kept by the driver and not by the encoder's machine, which may go
        block.pixels = None
        block.encoded = ray.put(encoded)
        self._finish_if_whole(block.chunk)

    def _finish_if_whole(self, opened: _Open) -> None:
        if all(block.encoded is not None for block in opened.blocks):
            self._finishing += 1
            reference = self._finish.remote(
                self._scoring, self._writing, opened.chunk.name, opened.rows, *opened.parts()
            )
            self._under_way[reference] = (self._finished, opened)

    def _finished(self, opened: _Open, reference: Any, done: Callable[[Written], None]) -> None:
        self._finishing -= 1
        try:
            written: Written = ray.get(reference)
        except RayError as error:
            _raise_what_stops_the_job(error)
            opened.attempts += 1
            if opened.attempts >= MAX_CHUNK_ATTEMPTS:
                raise ServiceError(
                    f"chunk {opened.chunk.name} could not be written in {opened.attempts} attempts: {error}"
                ) from error
            for block in opened.blocks:  # facts may have gone with the machine that read them
                block.encoded = None
                heapq.heappush(self._to_prepare, block)
            return
        done(written)

    def _again(self, block: _Block, error: RayError) -> None:
        """Prepare a block again whose process ended; halve it if that happens again, so that only
        the culprit is lost.
        """
        _raise_what_stops_the_job(error)
        logger.warning("a block of %d is done again: %s", block.count, type(error).__name__)
        block.attempts += 1
        block.pixels = None
        if block.count > 1 and block.attempts >= SPLIT_AFTER:
            middle = block.count // 2
            halves = [
                _Block(block.chunk, block.start, middle),
                _Block(block.chunk, block.start + middle, block.count - middle),
            ]
            at = block.chunk.blocks.index(block)
            block.chunk.blocks[at : at + 1] = halves
            for half in halves:
                heapq.heappush(self._to_prepare, half)
        elif block.attempts >= LOST_AFTER:
            logger.warning("an input ended %d processes and becomes an error", block.attempts)
            block.facts = ray.put(lost_facts(block.rows))
            block.encoded = ray.put(EncodedBlock.empty(self._reading.model.width))
            self._finish_if_whole(block.chunk)
        else:
            heapq.heappush(self._to_prepare, block)


def _raise_what_stops_the_job(error: RayError) -> None:
    """Raise an error of ours that a worker raised, and what says that the cluster is gone; others
    concern one block.
    """
    if (cause := cause_of(error)) is not None:
        raise cause from None
    if isinstance(error, RaySystemError):
        raise error
