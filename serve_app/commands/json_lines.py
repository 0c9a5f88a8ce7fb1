"""One picture's outcome as one line of JSON, whichever command found it."""

from collections.abc import Sequence
from typing import Protocol

from serve_app.errors import TaggerError
from serve_app.terminal import json_text


class ShownTag(Protocol):
    """What is shown of a tag, whether it was found here or by a service."""

    @property
    def label(self) -> str:
        """As the vocabulary writes it."""

    @property
    def confidence(self) -> float:
        """In [0, 1] unless a bare logit was asked for."""


ShownOutcome = Sequence[ShownTag] | TaggerError
"""One picture's tags, or why it has none."""


def json_line(name: str, outcome: ShownOutcome) -> str:
    """Return one picture's tags, or why it has none, as a line of JSON."""
    if isinstance(outcome, TaggerError):
        return json_text({"file": name, "error": {"code": outcome.code, "message": outcome.message}})
    tags = [{"label": tag.label, "confidence": float(f"{tag.confidence:.6g}")} for tag in outcome]
    return json_text({"file": name, "tags": tags})
