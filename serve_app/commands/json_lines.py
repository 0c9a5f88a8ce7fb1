"""One picture's outcome as one line of JSON, whichever command found it."""

from collections.abc import Sequence
from typing import Protocol

from serve_app.errors import TaggerError
from serve_app.terminal.printable import json_text


class ShownTag(Protocol):
    """What is shown of a tag, whether it was found here or by a service."""

    @property
    def label(self) -> str:
        """As the vocabulary writes it."""

    @property
    def confidence(self) -> float:
        """In [0, 1] unless a bare logit was asked for."""

    @property
    def raw_score(self) -> float | None:
        """The model's logit; None where a service did not return it."""


ShownOutcome = Sequence[ShownTag] | TaggerError
"""One picture's tags, or why it has none."""


def json_line(name: str, outcome: ShownOutcome, raw_scores: bool = True) -> str:
    """Return one image's tags, or why it has none, as a line of JSON.

    Args:
        name: Of the image.
        outcome: Its tags.
        raw_scores: Whether to show the raw scores of tags that have one.
    """
    if isinstance(outcome, TaggerError):
        return json_text(
            {"file": name, "error": {"code": outcome.code, "message": outcome.message}}
        )
    return json_text({"file": name, "tags": [_shown(tag, raw_scores) for tag in outcome]})


def _shown(tag: ShownTag, raw_scores: bool) -> dict[str, str | float]:
    entry: dict[str, str | float] = {
        "label": tag.label,
        "confidence": float(f"{tag.confidence:.6g}"),
    }
    if raw_scores and tag.raw_score is not None:
        entry["raw_score"] = float(f"{tag.raw_score:.6g}")
    return entry
