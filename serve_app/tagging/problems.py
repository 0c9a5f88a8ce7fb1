"""Problems of a file that a user wrote: one line each, up to a limit."""

from collections.abc import Sequence
from typing import Any

from serve_app.errors import ConfigError

MAX_PROBLEMS = 50
"""Lines of one message. A file with more problems has one cause for all of them."""
MAX_QUOTED = 200
"""Characters of a value that a message repeats."""


def raise_problems(problems: Sequence[str]) -> None:
    """Raise `ConfigError` if there are problems, one line each, up to `MAX_PROBLEMS`."""
    if not problems:
        return
    lines = list(problems[:MAX_PROBLEMS])
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"… and {len(problems) - MAX_PROBLEMS} more")
    raise ConfigError("\n".join(lines))


def quoted(value: Any) -> str:
    """Return a value as a message repeats it: as Python writes it, cut if it is long."""
    text = repr(value)
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…"
