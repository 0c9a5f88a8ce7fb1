"""Formats the outcome of one image as a line of JSON, for every command that prints such lines."""

from collections.abc import Sequence
from typing import Protocol

from serve_app.errors import TaggerError
from serve_app.terminal.printable import json_text


class PrintableTag(Protocol):
    """The fields of a tag that are printed; the tags of this process and of a service have them."""

    @property
    def label(self) -> str:
        """The label, spelled as in the vocabulary."""

    @property
    def confidence(self) -> float:
        """In [0, 1], unless `score` is `logit`."""

    @property
    def raw_score(self) -> float | None:
        """The model's logit; None if a service did not return it."""


PrintableOutcome = Sequence[PrintableTag] | TaggerError
"""The tags of one image, or its error."""


def json_line(name: str, outcome: PrintableOutcome, raw_scores: bool = True) -> str:
    """Return the tags or the error of one image as a line of JSON.

    Args:
        name: Name of the image.
        outcome: Its tags or its error.
        raw_scores: Whether to print the raw scores of tags that have one.
    """
    if isinstance(outcome, TaggerError):
        return json_text(
            {"file": name, "error": {"code": outcome.code, "message": outcome.message}}
        )
    return json_text({"file": name, "tags": [_tag_fields(tag, raw_scores) for tag in outcome]})


def _tag_fields(tag: PrintableTag, raw_scores: bool) -> dict[str, str | float]:
    fields: dict[str, str | float] = {
        "label": tag.label,
        "confidence": float(f"{tag.confidence:.6g}"),
    }
    if raw_scores and tag.raw_score is not None:
        fields["raw_score"] = float(f"{tag.raw_score:.6g}")
    return fields
