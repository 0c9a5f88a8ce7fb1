"""The effects of a change of a RayService."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Effect(StrEnum):
    """What a change does, from the smallest effect to the largest."""

    IN_PLACE = "in place"
    ROLLING = "replicas restart, a fifth at a time"
    NOT_TAKEN = "not taken by the running cluster"
    NEW_CLUSTER = "new cluster"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference and its effect."""

    where: str
    effect: Effect
    why: str


def differing(before: Any, after: Any, path: str) -> Iterator[str]:
    """Yield the paths of the leaves that differ."""
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from differing(before.get(key), after.get(key), f"{path}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from differing(old, new, f"{path}[{i}]")
    else:
        yield path
