"""One picture's outcome as one line of JSON, whichever command found it."""

import json

from serve_app.errors import TaggerError
from serve_app.tagger import TagOutcome


def json_line(name: str, outcome: TagOutcome) -> str:
    """Return one picture's tags, or why it has none, as a line of JSON."""
    if isinstance(outcome, TaggerError):
        return json.dumps({"file": name, "error": {"code": outcome.code, "message": outcome.message}})
    tags = [{"label": tag.label, "confidence": float(f"{tag.confidence:.6g}")} for tag in outcome]
    return json.dumps({"file": name, "tags": tags}, ensure_ascii=False)
