"""The encoders of a job: actors, each on a share of a GPU or on some cores.

Their number follows the work, within limits. An encoder that dies is replaced.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from serve_app.batch.cluster import cause_of
from serve_app.batch.preparing import Model
from serve_app.batch.rows import ImageFacts
from serve_app.errors import ConfigError
from serve_app.hardware.plan import DeploymentPlan

DEPTH = 2
"""Blocks that an encoder has at a time: one that it encodes, one whose pixels are on their way."""
MAX_FAILED_STARTS = 5
"""Number of encoders in a row that die before they are ready, after which the job stops."""


@dataclass(eq=False, slots=True)
class _Member:
    """An encoder.

    Attributes:
        actor: Its actor.
        started: Reference that becomes ready when it has loaded its model.
        ready: Whether it has.
        blocks: Keys are the blocks that it has, in the order in which it encodes them.
    """

    actor: Any
    started: Any
    ready: bool = False
    blocks: dict[Any, None] = field(default_factory=dict)

    def has_room(self) -> bool:
        """Whether the encoder can take a block."""
        return self.ready and len(self.blocks) < DEPTH


class EncoderPool:
    """Keeps as many encoders as there is work for; each block goes to the least busy one."""

    def __init__(self, model: Model, planned: DeploymentPlan, actor_class: type[Any]) -> None:
        """Start the smallest number of encoders.

        Args:
            model: What they load.
            planned: Ray resources of each, and the limits of their number.
            actor_class: `EncoderActor`, or what a benchmark or a test puts in its place.
        """
        self._model = model
        self._planned = planned
        self._actor_class = actor_class
        self._members: list[_Member] = []
        self._failed_starts = 0
        self._blamed: set[Any] = set()
        for _ in range(max(1, planned.min_replicas)):
            self._add()

    def __len__(self) -> int:
        return len(self._members)

    @property
    def running(self) -> int:
        """Number of encoders that have loaded their model."""
        return sum(member.ready for member in self._members)

    def starting(self) -> Iterator[Any]:
        """Yield the references that become ready when an encoder has started or failed."""
        for member in self._members:
            if not member.ready:
                yield member.started

    def has_room(self) -> bool:
        """Whether some encoder can take a block."""
        return any(member.has_room() for member in self._members)

    def encode(self, block: Any, pixels: Any, images: Sequence[ImageFacts]) -> Any:
        """Give a block to the least busy encoder and return the reference of its result.

        Args:
            block: Identifies the block.
            pixels: Reference to the `PreparedBlock`.
            images: What is known of its inputs.
        """
        free = [member for member in self._members if member.has_room()]
        member = min(free, key=lambda one: len(one.blocks))
        member.blocks[block] = None
        return member.actor.encode.remote(pixels, images)

    def ended(self, block: Any) -> None:
        """Take note that no encoder has a block any more, whatever became of it."""
        self._blamed.discard(block)
        for member in self._members:
            member.blocks.pop(block, None)

    def started(self, reference: Any) -> None:
        """Take note that an encoder has loaded its model; replace it if it could not.

        Raises:
            TaggerError: Loading the model failed for a reason that a retry does not change, or
                encoders die repeatedly.
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
                    f"{self._failed_starts} encoders in a row ended before their model was loaded; "
                    f"the last said: {_last_line(error)}"
                ) from error
            self._replace(member)

    def lost(self, block: Any) -> bool:
        """Replace the encoder that had a block and has died; return whether it was encoding it.

        Otherwise the block was only waiting there, and has nothing to do with the death.
        """
        for member in [member for member in self._members if block in member.blocks]:
            self._blamed.add(next(iter(member.blocks)))
            self._replace(member)
        return block in self._blamed

    def grow(self, waiting: int) -> None:
        """Start one more encoder if blocks wait, all are busy, none is starting and one may."""
        is_busy = all(member.ready and not member.has_room() for member in self._members)
        if waiting and is_busy and len(self) < self._planned.max_replicas:
            self._add()

    def shrink(self, left: int) -> None:
        """Stop idle encoders that the remaining blocks do not need, so that their nodes can go."""
        idle = [member for member in self._members if member.ready and not member.blocks]
        for member in idle:
            if len(self) > max(1, left):
                self._drop(member)

    def end(self) -> None:
        """Stop all encoders."""
        for member in list(self._members):
            self._drop(member)

    def _replace(self, member: _Member) -> None:
        self._drop(member)
        self._add()

    def _add(self) -> None:
        actor_class = ray.remote(self._actor_class).options(
            num_cpus=self._planned.num_cpus, num_gpus=self._planned.num_gpus, max_restarts=0
        )
        actor = actor_class.remote(self._model, _num_threads(self._planned), self._planned.num_gpus)
        self._members.append(_Member(actor, actor.ready.remote()))

    def _drop(self, member: _Member) -> None:
        self._members.remove(member)
        ray.kill(member.actor)


def _num_threads(planned: DeploymentPlan) -> int:
    """Return the threads of a forward pass on the CPU; 0 leaves the number to torch."""
    return 0 if planned.num_gpus else max(1, int(planned.num_cpus))


def _last_line(error: RayError) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
