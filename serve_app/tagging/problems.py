"""Problems of a file that a user wrote: one line each, at most so many at once."""

from collections.abc import Sequence
from typing import Any

from serve_app.errors import ConfigError

MAX_PROBLEMS = 50
"""Lines of one message. A file with more problems has one cause for all of them."""
MAX_QUOTED = 200
"""Characters of a value that a message repeats."""


def raise_problems(problems: Sequence[str]) -> None:
    """Raise `ConfigError` if there are problems, one line each, cut where there are many."""
    if not problems:
        return
    more = len(problems) - MAX_PROBLEMS
    raise ConfigError(
        "\n".join([*problems[:MAX_PROBLEMS], *([f"… and {more} more"] if more > 0 else [])])
    )


def quoted(value: Any) -> str:
    """Return a value as a message repeats it: as Python writes it, and not all of a long one."""
    text = repr(value)
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…"
