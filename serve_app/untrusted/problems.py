"""Builds messages about problems in a file or a request: where, what, and the nearest valid name.

Not here: the rules for valid values (the pydantic models), the line of a value in a file
(`tagging/lined_yaml.py`).
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from serve_app.errors import ConfigError

MAX_PROBLEMS = 50
"""Maximum number of lines in one message; more problems in a file usually have one cause."""
MAX_QUOTED = 200
"""Maximum number of characters of a value that a message repeats."""
_MESSAGES = {
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be an object with keys",
    "model_type": "must be an object with keys",
    "model_attributes_type": "must be an object with keys",
}
"""Messages by pydantic's error type, where pydantic's message has the names of Python types."""


def raise_problems(problems: Sequence[str]) -> None:
    """Raise `ConfigError` with one line per problem, at most `MAX_PROBLEMS`, if there are any."""
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
        problem: An item of `ValidationError.errors()`. The message repeats the value if the item
            includes it and it is not an object.
        where: The key of the value, or the file and the line.
        known_keys: The valid keys, if an unknown key was found.
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
    """Return what is wrong with a value, in lower case and without Python terms."""
    if problem["type"] in _MESSAGES:
        return _MESSAGES[problem["type"]]
    message = str(problem["msg"]).removeprefix("Value error, ")
    if message.startswith("Input should "):
        return message.replace("Input should ", "must ", 1)
    return f"{message[0].lower()}{message[1:]}"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Return the known name that is most similar to a name; None if none is similar.

    This takes milliseconds for thousands of names.

    Args:
        name: The unknown name; its first `MAX_QUOTED` characters are compared.
        known: The known names.
        cutoff: Minimum similarity, in [0, 1].
    """
    found = difflib.get_close_matches(name[:MAX_QUOTED], list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def key_hint(key: str, known: Iterable[str]) -> str:
    """Return a hint about an unknown key: the nearest known key, or else all known keys."""
    names = list(known)
    found = nearest(key, names)
    return f"did you mean {found}?" if found else f"use one of {', '.join(names)}."


def label_hint(label: str | None, otherwise: str = ".") -> str:
    """Return the end of a sentence about an unknown label.

    Args:
        label: The nearest known label; None if there is none.
        otherwise: The end of the sentence if there is none.
    """
    return otherwise if label is None else f"; did you mean {label!r}?"
