"""From measured load to numbers of replicas.

Serve's own policy sizes each deployment by its own queue. Here the encoders are sized by the images
that arrive and by the measured rate of one encoder, and the deployments that feed them by what the
encoders will take. So a queue at one deployment does not add replicas to another, and the numbers
stay within what the hardware holds.

Pure functions: the clock and the history come in, and the new history goes out.
"""

import math
from dataclasses import dataclass

UTILISATION = 0.75
"""Fraction of the time that a replica should be busy.

The rest absorbs a burst while another replica starts.
"""
DRAIN_S = 10.0
"""Time in seconds within which waiting images should be processed."""
TOLERANCE = 0.1
"""Relative difference from the wanted number of replicas that is ignored."""
HOLD_S = 120.0
"""Period in seconds whose highest wanted number is kept; longer than a model takes to load."""
POSTPROCESSOR_PER_SECOND = 2_000.0
"""Images per second that one Postprocessor scores; measured: 0.4 ms an image."""
TEXT_CALLS_PER_REPLICA = 4.0
"""Number of concurrent calls that one TextEncoder should have."""

History = tuple[tuple[float, int], ...]
"""Wanted numbers of replicas with their times in seconds, oldest first."""


@dataclass(frozen=True, slots=True)
class Load:
    """Measurements of the last seconds over all replicas.

    Attributes:
        arrivals: Images per second that arrive.
        waiting: Images that wait for an encoder.
        undecoded: Images that wait to be decoded.
        per_encoder: Images per second of a busy encoder; None before one was busy.
        per_preprocessor: Images per second that a Preprocessor can decode; None before one did.
        text_calls: Concurrent calls to TextEncoders.
    """

    arrivals: float
    waiting: float
    undecoded: float
    per_encoder: float | None
    per_preprocessor: float | None
    text_calls: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """The replicas of one deployment and their limits.

    Attributes:
        current: Number of replicas that Serve aims for now.
        running: Number of replicas that run.
        min_replicas: Lower limit.
        max_replicas: Upper limit.
    """

    current: int
    running: int
    min_replicas: int
    max_replicas: int

    def clamp(self, wanted: float) -> int:
        """Return a whole number within the limits; the current one if it is within `TOLERANCE`."""
        is_close = self.current > 0 and abs(wanted - self.current) <= TOLERANCE * self.current
        replicas = self.current if is_close else math.ceil(wanted - 1e-9)
        return max(self.min_replicas, min(self.max_replicas, replicas))


def wanted_encoders(load: Load, running: int) -> float:
    """Return the number of ImageEncoders for a load.

    If their rate is not known yet and images wait, it is a few more than run.
    """
    if load.per_encoder is None or load.per_encoder <= 0:
        return max(running + 1, running * (1 + 2 * TOLERANCE)) if load.waiting > 0 else running
    return (load.arrivals + load.waiting / DRAIN_S) / (load.per_encoder * UTILISATION)


def wanted_preprocessors(load: Load, running: int) -> float:
    """Return the number of Preprocessors that decode what arrives and what waits."""
    if load.per_preprocessor is None or load.per_preprocessor <= 0:
        return running
    return (load.arrivals + load.undecoded / DRAIN_S) / (load.per_preprocessor * UTILISATION)


def wanted_replicas(load: Load, bounds: dict[str, Bounds]) -> dict[str, int]:
    """Return the number of replicas for a load, within bounds and before damping.

    Args:
        load: The measured load.
        bounds: Bounds of the deployments that scale, by their Serve names.
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
    """Return the highest number wanted in the last `hold_s`, and the new history.

    Deployments scale up immediately, and down only after `hold_s`.
    """
    kept = (*(entry for entry in history if entry[0] > now_s - hold_s), (now_s, wanted))
    # an older number that a later one reaches can never count again
    useful = tuple(
        entry for i, entry in enumerate(kept) if all(later[1] < entry[1] for later in kept[i + 1 :])
    )
    return max(count for _, count in kept), useful
