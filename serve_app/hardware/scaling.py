"""From measured load to numbers of replicas. Pure functions: the clock and the history come in, the
new history goes out.

Serve's own policy sizes each deployment by its own queue. Here the encoders are sized by the images
that arrive and by what one of them was measured to do, and the deployments that feed them by what
the encoders will take: so a queue at one place does not pull up replicas at another, and nothing is
asked for that the hardware cannot hold.
"""

import math
from dataclasses import dataclass

UTILISATION = 0.75
"""Part of the time that a replica should be busy: enough left for a burst while another one
starts."""
DRAIN_S = 10.0
"""Within which what waits should be done."""
TOLERANCE = 0.1
"""A number of replicas that differs from what is wanted by no more than this part is left alone."""
HOLD_S = 120.0
"""Replicas go only down to the most that was wanted in the last seconds: longer than a model takes
to load."""
POSTPROCESSOR_PER_SECOND = 2_000.0
"""Images a second that one Postprocessor scores: 0.4 ms an image were measured."""
TEXT_CALLS_PER_REPLICA = 4.0
"""Calls under way that one TextEncoder should have."""

History = tuple[tuple[float, int], ...]
"""What was wanted lately: seconds and replicas."""


@dataclass(frozen=True, slots=True)
class Load:
    """What was measured over the last seconds, over all replicas.

    Attributes:
        arrivals: Images a second that came in.
        waiting: Images that wait for an encoder.
        undecoded: Images that wait to be decoded.
        per_encoder: Images that a busy encoder does a second; None before one was busy.
        per_preprocessor: Images that a Preprocessor can decode a second; None before one did.
        text_calls: Calls to TextEncoders under way.
    """

    arrivals: float
    waiting: float
    undecoded: float
    per_encoder: float | None
    per_preprocessor: float | None
    text_calls: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """One deployment: replicas that are asked for now, those that run, and between what they may
    lie.
    """

    current: int
    running: int
    least: int
    most: int

    def clamp(self, wanted: float) -> int:
        """Return whole replicas within the bounds; within `TOLERANCE` of what there are, those."""
        close = self.current > 0 and abs(wanted - self.current) <= TOLERANCE * self.current
        replicas = self.current if close else math.ceil(wanted - 1e-9)
        return max(self.least, min(self.most, replicas))


def wanted_encoders(load: Load, running: int) -> float:
    """Return how many ImageEncoders the load asks for; a few more than run where what they can do
    is not known.
    """
    if load.per_encoder is None or load.per_encoder <= 0:
        return max(running + 1, running * (1 + 2 * TOLERANCE)) if load.waiting > 0 else running
    return (load.arrivals + load.waiting / DRAIN_S) / (load.per_encoder * UTILISATION)


def wanted_preprocessors(load: Load, running: int) -> float:
    """Return how many Preprocessors decode what arrives and what waits."""
    if load.per_preprocessor is None or load.per_preprocessor <= 0:
        return running
    return (load.arrivals + load.undecoded / DRAIN_S) / (load.per_preprocessor * UTILISATION)


def wanted_replicas(load: Load, bounds: dict[str, Bounds]) -> dict[str, int]:
    """Return the replicas that a load asks for, within bounds, before damping.

    Args:
        load: What was measured.
        bounds: Of the deployments that scale, by their Serve names.
    """
    return {name: bound.clamp(_wanted(name, load, bound.running)) for name, bound in bounds.items()}


def _wanted(name: str, load: Load, running: int) -> float:
    match name:
        case "ImageEncoder":
            return wanted_encoders(load, running)
        case "Preprocessor":
            return wanted_preprocessors(load, running)
        case "Postprocessor":
            return load.arrivals / (POSTPROCESSOR_PER_SECOND * UTILISATION)
        case "TextEncoder":
            return load.text_calls / TEXT_CALLS_PER_REPLICA
    raise ValueError(f"{name} is no deployment that scales")


def damp(
    wanted: int, history: History, now_s: float, hold_s: float = HOLD_S
) -> tuple[int, History]:
    """Return the most that was wanted in the last `hold_s`, and the history with this wish in it:
    up at once, down late.
    """
    kept = (*(entry for entry in history if entry[0] > now_s - hold_s), (now_s, wanted))
    # an older wish that a later one reaches can never count again
    useful = tuple(
        entry
        for at, entry in enumerate(kept)
        if all(later[1] < entry[1] for later in kept[at + 1 :])
    )
    return max(count for _, count in kept), useful
