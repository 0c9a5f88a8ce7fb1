"""The engine of an ordinary job: tasks prepare blocks, actors encode them, tasks write chunks.

The driver moves references, never pixels. The number of blocks under way is bounded, so memory does
not grow with the bucket. The oldest chunk goes first, so little work is lost if everything dies.
"""

import heapq
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RaySystemError

from serve_app.batch.blocks import EncodedBlock
from serve_app.batch.cluster import cause_of
from serve_app.batch.encoder_pool import DEPTH, EncoderPool
from serve_app.batch.engine import ChunkInputs, Watcher
from serve_app.batch.job_scoring import Scoring, finish_chunk
from serve_app.batch.open_chunks import OpenBlock, OpenChunk
from serve_app.batch.output_files import Writing, Written
from serve_app.batch.preparing import Reading, prepare_block
from serve_app.errors import ServiceError

logger = logging.getLogger(__name__)

MAX_FINISHING = 4
"""Chunks that are scored and written at the same time, per encoder."""
SPLIT_AFTER = 2
"""Number of crashed processes after which a block is split."""
LOST_AFTER = 3
"""Number of crashed processes after which a single input becomes an error row."""
MAX_CHUNK_ATTEMPTS = 5
WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Flow:
    """How much is under way at a time.

    Attributes:
        block_images: Inputs that one task prepares and one call encodes.
        prepare_cpus: CPUs of a preparing task.
        preparing: Number of tasks that prepare at the same time.
    """

    block_images: int
    prepare_cpus: float
    preparing: int


class EncodingEngine:
    """Prepares, encodes and writes chunks on a cluster; see `Engine`."""

    def __init__(
        self, reading: Reading, writing: Writing, scoring: Scoring, pool: EncoderPool, flow: Flow
    ) -> None:
        self._reading = reading
        self._writing = writing
        self._pool = pool
        self._flow = flow
        self._scoring = ray.put(scoring)
        # no retries by Ray: a crash counts as an attempt, and too many of them split the block
        self._prepare = ray.remote(prepare_block).options(
            num_cpus=flow.prepare_cpus,
            num_returns=2,
            max_retries=0,
            scheduling_strategy="SPREAD",
        )
        # no CPU: scoring a chunk is short beside encoding it
        self._finish = ray.remote(finish_chunk).options(num_cpus=0, max_retries=0)
        self._to_prepare: list[OpenBlock] = []
        self._to_encode: list[OpenBlock] = []
        self._under_way: dict[Any, Callable[[Any, Watcher], None]] = {}
        self._preparing = 0
        self._finishing = 0
        self._positions = itertools.count()
        self._exhausted = False

    def run(self, chunks: Iterator[ChunkInputs], watcher: Watcher) -> None:
        """Run every chunk; see `Engine`."""
        while True:
            self._fill(chunks)
            self._dispatch()
            if self._is_done():
                return

            waiting = [*self._under_way, *self._pool.starting()]
            ended, _ = ray.wait(waiting, num_returns=1, timeout=WAIT_S)
            if ended:  # take the others that have ended too
                ended, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
            for reference in ended:
                self._take(reference, watcher)
            watcher.tick(self._pool.running)

    def end(self) -> None:
        """Stop the encoders."""
        self._pool.end()

    def _is_done(self) -> bool:
        left = self._under_way or self._to_prepare or self._to_encode
        return self._exhausted and not left

    def _fill(self, chunks: Iterator[ChunkInputs]) -> None:
        """Start preparing as many blocks as may be under way."""
        max_ahead = self._flow.preparing + DEPTH * len(self._pool)
        while (
            self._preparing < self._flow.preparing
            and self._preparing + len(self._to_encode) < max_ahead
        ):
            if not self._to_prepare and not self._open_next(chunks):
                return
            block = heapq.heappop(self._to_prepare)
            block.pixels, images = self._prepare.remote(self._reading, block.inputs)
            self._preparing += 1
            self._under_way[images] = partial(self._prepared, block)

    def _open_next(self, chunks: Iterator[ChunkInputs]) -> bool:
        """Divide the next chunk into blocks; return False if there is none or no room for it."""
        if self._exhausted or self._finishing >= MAX_FINISHING * max(1, len(self._pool)):
            return False
        following = next(chunks, None)
        if following is None:
            self._exhausted = True
            return False

        opened = OpenChunk(*following, next(self._positions))
        opened.divide(self._flow.block_images)
        self._prepare_later(opened.blocks)
        return True

    def _prepare_later(self, blocks: Sequence[OpenBlock]) -> None:
        for block in blocks:
            heapq.heappush(self._to_prepare, block)

    def _dispatch(self) -> None:
        """Give prepared blocks to encoders, and adapt the number of encoders."""
        while self._to_encode and self._pool.has_room():
            block = heapq.heappop(self._to_encode)
            reference = self._pool.encode(block, block.pixels, block.images)
            self._under_way[reference] = partial(self._encoded, block)
        self._pool.grow(len(self._to_encode))
        if self._exhausted and not self._to_prepare:
            self._pool.shrink(self._preparing + len(self._to_encode))

    def _take(self, reference: Any, watcher: Watcher) -> None:
        """Handle a task that has ended."""
        if reference not in self._under_way:
            self._pool.started(reference)
            return
        take = self._under_way.pop(reference)
        take(reference, watcher)

    def _prepared(self, block: OpenBlock, reference: Any, _: Watcher) -> None:
        self._preparing -= 1
        try:
            block.images = ray.get(reference)
        except RayError as error:
            self._retry(block, error)
            return
        heapq.heappush(self._to_encode, block)

    def _encoded(self, block: OpenBlock, reference: Any, _: Watcher) -> None:
        try:
            encoded = ray.get(reference)
        except RayError as error:
            is_to_blame = not isinstance(error, RayActorError) or self._pool.lost(block)
            self._pool.ended(block)
            self._retry(block, error, is_to_blame)
            return
        self._pool.ended(block)
        self._keep(block, encoded)

    def _finished(self, opened: OpenChunk, reference: Any, watcher: Watcher) -> None:
        self._finishing -= 1
        try:
            written: Written = ray.get(reference)
        except RayError as error:
            self._retry_chunk(opened, error)
            return
        watcher.chunk_done(written)

    def _keep(self, block: OpenBlock, encoded: EncodedBlock) -> None:
        """Keep an encoded block, and finish its chunk if it was the last one."""
        block.pixels = None
        block.images = ()
        # stored by the driver, because the machine of the encoder may go away
        block.encoded = ray.put(encoded)
        if block.chunk.is_encoded():
            self._finish_chunk(block.chunk)

    def _finish_chunk(self, opened: OpenChunk) -> None:
        self._finishing += 1
        reference = self._finish.remote(
            self._scoring,
            self._writing,
            opened.chunk.name,
            opened.inputs,
            *(block.encoded for block in opened.blocks),
        )
        self._under_way[reference] = partial(self._finished, opened)

    def _retry_chunk(self, opened: OpenChunk, error: RayError) -> None:
        """Score and write a chunk again whose task crashed."""
        _raise_what_stops_the_job(error)
        opened.attempts += 1
        if opened.attempts >= MAX_CHUNK_ATTEMPTS:
            raise ServiceError(
                f"chunk {opened.chunk.name} could not be written "
                f"in {opened.attempts} attempts: {error}"
            ) from error
        self._finish_chunk(opened)

    def _retry(self, block: OpenBlock, error: RayError, is_to_blame: bool = True) -> None:
        """Prepare a block again whose process crashed.

        After repeated crashes the block is split, so that only the input that causes them is lost.

        Args:
            block: The block.
            error: The error of its task or call.
            is_to_blame: Whether the process was working on the block when it crashed.
        """
        _raise_what_stops_the_job(error)
        logger.warning("retrying a block of %d images: %s", block.count, type(error).__name__)
        block.attempts += is_to_blame
        block.pixels = None
        block.images = ()
        if block.count > 1 and block.attempts >= SPLIT_AFTER:
            self._prepare_later(block.split())
        elif block.attempts >= LOST_AFTER:
            logger.warning("an input ended %d processes and becomes an error", block.attempts)
            self._keep(block, EncodedBlock.lost(block.inputs, self._reading.model.width))
        else:
            self._prepare_later([block])


def _raise_what_stops_the_job(error: RayError) -> None:
    """Raise errors that concern more than one block.

    These are our own errors that a worker raised, and the loss of the cluster.
    """
    if (cause := cause_of(error)) is not None:
        raise cause from None
    if isinstance(error, RaySystemError):
        raise error
