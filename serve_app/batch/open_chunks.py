"""Chunks under way in the encoding engine, and the blocks that they are divided into."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from serve_app.batch.rows import ImageFacts
from serve_app.batch.snapshot import Chunk


@dataclass(eq=False, slots=True)
class OpenChunk:
    """A chunk under way."""

    chunk: Chunk
    inputs: pa.Table
    position: int
    blocks: "list[OpenBlock]" = field(default_factory=list)
    attempts: int = 0

    def divide(self, block_images: int) -> None:
        """Divide the inputs into blocks."""
        self.blocks = [
            OpenBlock(self, start, min(block_images, len(self.inputs) - start))
            for start in range(0, len(self.inputs), block_images)
        ]

    def is_encoded(self) -> bool:
        """Whether all of its blocks are encoded."""
        return all(block.encoded is not None for block in self.blocks)


@dataclass(eq=False, slots=True)
class OpenBlock:
    """Some inputs of a chunk, and what exists of them.

    Attributes:
        chunk: The chunk that they belong to.
        start: Index of the first input in the chunk.
        count: Number of inputs.
        attempts: Number of processes that crashed while they worked on the block.
        pixels: Reference to the `PreparedBlock`.
        images: What is known of the inputs after they were prepared.
        encoded: Reference to the `EncodedBlock`.
    """

    chunk: OpenChunk
    start: int
    count: int
    attempts: int = 0
    pixels: Any = None
    images: Sequence[ImageFacts] = ()
    encoded: Any = None

    def __lt__(self, other: "OpenBlock") -> bool:
        return (self.chunk.position, self.start) < (other.chunk.position, other.start)

    @property
    def inputs(self) -> pa.Table:
        """Its inputs."""
        return self.chunk.inputs.slice(self.start, self.count)

    def split(self) -> "list[OpenBlock]":
        """Replace the block by two halves and return them."""
        middle = self.count // 2
        halves = [
            OpenBlock(self.chunk, self.start, middle),
            OpenBlock(self.chunk, self.start + middle, self.count - middle),
        ]
        i = self.chunk.blocks.index(self)
        self.chunk.blocks[i : i + 1] = halves
        return halves
