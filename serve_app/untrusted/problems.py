"""Sentences about what is wrong in a file or a request: where, what, and the nearest valid name.

Not here: which values are valid (the pydantic models), where a value stands in a file
(`tagging/lined_yaml.py`).
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from serve_app.errors import ConfigError

MAX_PROBLEMS = 50
"""Maximum number of lines in one message. More problems in a file usually have one cause."""
MAX_QUOTED = 200
"""Maximum number of characters of a value that a message repeats."""
_MESSAGES = {
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be an object with keys",
    "model_type": "must be an object with keys",
    "model_attributes_type": "must be an object with keys",
}
"""Messages by pydantic's error type, where pydantic's own uses the names of Python types."""


def raise_problems(problems: Sequence[str]) -> None:
    """Raise `ConfigError` if there are problems, one line each, at most `MAX_PROBLEMS`."""
    if not problems:
        return
    more = len(problems) - MAX_PROBLEMS
    rest = [f"… and {more} more"] if more > 0 else []
    raise ConfigError("\n".join([*problems[:MAX_PROBLEMS], *rest]))


def quoted(value: Any) -> str:
    """Return a value as Python writes it, cut to `MAX_QUOTED` characters."""
    text = repr(value)
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…"


def problem_sentence(problem: Mapping[str, Any], where: str, known_keys: Iterable[str] = ()) -> str:
    """Return one sentence for one of pydantic's errors.

    Args:
        problem: An item of `ValidationError.errors()`. The value is repeated if it is included and
            is not an object.
        where: The key of the value, or the file and the line.
        known_keys: Keys that are valid where an unknown one was found.
    """
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key; {key_hint(str(problem['loc'][-1]), known_keys)}"
    if problem["type"] == "missing":
        return f"{where} is missing."
    message = problem_message(problem)
    value = problem.get("input", {})
    if not isinstance(value, Mapping):
        message = f"{message.removesuffix('.')} (got {quoted(value)})"
    return f"{where}: {message}" if message.endswith((".", "?")) else f"{where}: {message}."


def problem_message(problem: Mapping[str, Any]) -> str:
    """Return what is wrong with a value, in lower case and without Python's words."""
    if problem["type"] in _MESSAGES:
        return _MESSAGES[problem["type"]]
    message = str(problem["msg"]).removeprefix("Value error, ")
    if message.startswith("Input should "):
        return message.replace("Input should ", "must ", 1)
    return f"{message[0].lower()}{message[1:]}"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Return the known name that is most similar to a name; None if none is similar.

    It takes milliseconds among thousands of names.

    Args:
        name: The unknown name, of which `MAX_QUOTED` characters are compared.
        known: The known names.
        cutoff: Minimum similarity, in [0, 1].
    """
    found = difflib.get_close_matches(name[:MAX_QUOTED], list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def key_hint(key: str, known: Iterable[str]) -> str:
    """Return the hint about an unknown key: the nearest known key, or else all of them."""
    names = list(known)
    found = nearest(key, names)
    return f"did you mean {found}?" if found else f"known are {', '.join(names)}."


def label_hint(label: str | None, otherwise: str = ".") -> str:
    """Return the end of a sentence about an unknown label.

    Args:
        label: The nearest known label; None if there is none.
        otherwise: The end without one.
    """
    return otherwise if label is None else f"; did you mean {label!r}?"
