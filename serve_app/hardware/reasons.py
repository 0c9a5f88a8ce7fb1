"""One value of a plan and why it has that value."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reason:
    """A named value and the sentence that explains it."""

    name: str
    value: str
    why: str
