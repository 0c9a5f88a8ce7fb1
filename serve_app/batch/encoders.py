"""The encoders of a job: actors, each on its share of a GPU, between a fewest and a most, replaced
when they die.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from serve_app.batch.cluster import cause_of
from serve_app.batch.workers import Model
from serve_app.errors import ConfigError

DEPTH = 2
"""Blocks that an encoder has at a time: one that it encodes, and one whose pixels are on their
way."""
MAX_FAILED_STARTS = 5
"""Encoders in a row that ended before they were ready, after which the job stops."""


@dataclass(frozen=True, slots=True)
class EncoderScale:
    """Ray's resources of one encoder, and between how many they scale."""

    num_cpus: float
    num_gpus: float
    least: int
    most: int

    @property
    def threads(self) -> int:
        """Of a forward pass on the CPU; 0 leaves them to torch."""
        return 0 if self.num_gpus else max(1, int(self.num_cpus))


@dataclass(eq=False, slots=True)
class _Member:
    actor: Any
    started: Any
    ready: bool = False
    blocks: set[Any] = field(default_factory=set)


class EncoderPool:
    """Keeps as many encoders as there is work for, and gives each block to the one with the least
    to do.

    Args:
        model: That they load.
        scale: Ray's resources of each, and how many.
        encoder: Class of the actors: `workers.Encoder`, or what a benchmark puts in its place.
    """

    def __init__(self, model: Model, scale: EncoderScale, encoder: type[Any]) -> None:
        self._model = model
        self.scale = scale
        self._encoder = encoder
        self._members: list[_Member] = []
        self._failed_starts = 0
        for _ in range(max(1, scale.least)):
            self._add()

    def __len__(self) -> int:
        return len(self._members)

    @property
    def running(self) -> int:
        """Encoders that have loaded their model."""
        return sum(member.ready for member in self._members)

    def starting(self) -> Iterator[Any]:
        """Yield what becomes ready when an encoder that was started is, or has failed."""
        for member in self._members:
            if not member.ready:
                yield member.started

    def has_room(self) -> bool:
        """Whether some encoder can take a block."""
        return any(member.ready and len(member.blocks) < DEPTH for member in self._members)

    def encode(self, block: Any, pixels: Any) -> Any:
        """Give a block to the encoder with the least to do, and return the reference of its
        embeddings.
        """
        member = min(
            (m for m in self._members if m.ready and len(m.blocks) < DEPTH),
            key=lambda m: len(m.blocks),
        )
        member.blocks.add(block)
        return member.actor.encode.remote(pixels)

    def ended(self, block: Any) -> None:
        """Say that a block is not with an encoder any more, whatever became of it."""
        for member in self._members:
            member.blocks.discard(block)

    def started(self, reference: Any) -> None:
        """Take note that an encoder has loaded its model, or could not; one that could not is
        replaced.

        Raises:
            TaggerError: What the model's loading said, or that encoders end again and again.
        """
        member = next(member for member in self._members if member.started == reference)
        try:
            ray.get(reference)
            member.ready = True
            self._failed_starts = 0
        except RayError as error:
            self._failed_starts += 1
            if (cause := cause_of(error)) is not None:
                raise cause from None
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise ConfigError(
                    f"{self._failed_starts} encoders in a row ended before their model was loaded; the last said: {_last_line(error)}"
                ) from error
            self._drop(member)
            self._add()

    def lost(self, block: Any) -> None:
        """Replace the encoder that had a block, which has died."""
        for member in [member for member in self._members if block in member.blocks]:
            self._drop(member)
            self._add()

    def grow(self, waiting: int) -> None:
        """Start one encoder more if blocks wait for one, all are busy, none is starting and there
        may be more.
        """
        if (
            waiting
            and len(self) < self.scale.most
            and all(m.ready and len(m.blocks) >= DEPTH for m in self._members)
        ):
            self._add()

    def shrink(self, left: int) -> None:
        """End idle encoders that the blocks which are left will not need, so that their machines
        may go.
        """
        for member in [m for m in self._members if m.ready and not m.blocks]:
            if len(self) > max(1, left):
                self._drop(member)

    def end(self) -> None:
        """End all encoders."""
        for member in list(self._members):
            self._drop(member)

    def _add(self) -> None:
        options = {
            "num_cpus": self.scale.num_cpus,
            "num_gpus": self.scale.num_gpus,
            "max_restarts": 0,
        }
        actor = (
            ray.remote(self._encoder)
            .options(**options)
            .remote(self._model, self.scale.threads, self.scale.num_gpus)
        )
        self._members.append(_Member(actor, actor.ready.remote()))

    def _drop(self, member: _Member) -> None:
        self._members.remove(member)
        ray.kill(member.actor)


def _last_line(error: RayError) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
