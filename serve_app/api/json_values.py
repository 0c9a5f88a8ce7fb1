"""Builds Python values from the events of a JSON parser, within bounds.

Not here: the parser (`json_bodies.py`), what the values must be (`parameters.py`).
"""

import sys
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serve_app.api.long_texts import LongText
from serve_app.errors import InvalidRequest, PayloadTooLarge
from serve_app.siglip.inputs import FloatArray

MAX_DEPTH = 8
"""Levels of objects and lists. The deepest request, `messages` of vLLM's form, has six."""
MAX_KEYS = 100
"""Keys of one object, repeated ones included."""
MAX_KEY_CHARACTERS = 256
MAX_ITEMS = 1_000
"""Items of a list that has no limit of its own; labels may raise it."""
MAX_VALUES_PER_ITEM = 16
"""A body holds at most this many values for each item that one list may have."""
MAX_TEXT_BYTES = 24 * 2**20
"""Memory of all strings that are not `LongText`. 1,000 texts of 8,192 CJK characters fit."""


@dataclass(frozen=True, slots=True)
class JsonBounds:
    """What a JSON object may hold.

    Attributes:
        max_items: Maximum number of items in a list.
        counted: Maximum number of items by key, for lists whose limit has its own error.
        rows: Key of a list whose inner lists are rows of numbers; None for no such list.
        max_row_numbers: Maximum number of numbers in such a row.
    """

    max_items: int = MAX_ITEMS
    counted: Mapping[str, int] = field(default_factory=dict)
    rows: str | None = None
    max_row_numbers: int = 0


class _Level:
    """An object or a list that has not ended yet."""

    __slots__ = ("is_row", "key", "max_items", "name", "num_keys", "value")

    def __init__(self, value: Any, name: str, max_items: int, is_row: bool = False) -> None:
        self.value = value
        self.name = name
        self.max_items = max_items
        self.is_row = is_row
        self.key = ""
        self.num_keys = 0


class ValueBuilder:
    """Builds one JSON object; refuses it at the first event that goes beyond the bounds."""

    def __init__(self, bounds: JsonBounds) -> None:
        self._bounds = bounds
        self._levels: list[_Level] = []
        self._result: dict[str, Any] | None = None
        self._strings: deque[str | LongText | None] = deque()
        self._num_values = 0
        self._max_values = bounds.max_items * MAX_VALUES_PER_ITEM
        self._num_text_bytes = 0

    def note_string(self, value: str | LongText | None) -> None:
        """Set the value of the next string event; None to use the parser's own value."""
        self._strings.append(value)

    def add(self, events: Iterable[tuple[str, Any]]) -> None:
        """Take the next events.

        Raises:
            PayloadTooLarge: A list in `counted` has too many items.
            InvalidRequest: The value is not an object, or exceeds another bound.
        """
        for event, value in events:
            level = self._levels[-1] if self._levels else None
            if level is not None and level.is_row:
                self._add_to_row(level, event, value)
            elif event == "map_key":
                self._start_member(level, self._text(value))
            elif event == "start_map":
                self._start({}, level)
            elif event == "start_array":
                self._start([], level)
            elif event in ("end_map", "end_array"):
                self._end()
            else:
                self._put(level, self._text(value) if event == "string" else value)

    def result(self) -> dict[str, Any]:
        """Return the object, once the parser has found its end."""
        if self._result is None:
            raise _not_an_object()
        return self._result

    def _text(self, parsed: str) -> str | LongText:
        """Return the value of a string event: the noted value, or else the parser's."""
        noted = self._strings.popleft()
        text = parsed if noted is None else noted
        if isinstance(text, LongText):
            return text
        self._num_text_bytes += sys.getsizeof(text)
        if self._num_text_bytes > MAX_TEXT_BYTES:
            raise PayloadTooLarge(
                f"The strings of the body take more than {MAX_TEXT_BYTES:,} bytes of memory. "
                "Send fewer in one request."
            )
        return text

    def _add_to_row(self, level: _Level, event: str, value: Any) -> None:
        row: list[float] = level.value
        if event == "number":
            if len(row) >= level.max_items:
                raise InvalidRequest(
                    f"{level.name} holds a list of more than {level.max_items:,} numbers; "
                    "send embeddings of the served checkpoint."
                )
            row.append(value)
        elif event == "end_array":
            self._levels.pop()
            self._put(self._levels[-1], _as_row(row))
        else:
            raise InvalidRequest(f"{level.name}: each must be a list of numbers, or base64.")

    def _start_member(self, level: _Level | None, key: str | LongText) -> None:
        assert level is not None, "keys come within objects"
        level.num_keys += 1
        if level.num_keys > MAX_KEYS:
            raise InvalidRequest(
                f"An object of the body has more than {MAX_KEYS} keys; "
                "send only documented parameters."
            )
        if isinstance(key, LongText) or len(key) > MAX_KEY_CHARACTERS:
            raise InvalidRequest(
                f"A key of the body has more than {MAX_KEY_CHARACTERS} characters; "
                "send only documented parameters."
            )
        level.key = key

    def _start(self, value: Any, parent: _Level | None) -> None:
        if parent is None and not isinstance(value, dict):
            raise _not_an_object()
        if len(self._levels) >= MAX_DEPTH:
            raise InvalidRequest(
                f"The body is nested more than {MAX_DEPTH} levels deep; send it as documented."
            )
        name = "The body" if parent is None else parent.key or parent.name
        max_items = self._bounds.counted.get(name, self._bounds.max_items)
        is_row = False
        # a row is a list directly within the list under the key
        if isinstance(value, list) and len(self._levels) == 2 and name == self._bounds.rows:
            is_row = isinstance(self._levels[-1].value, list)
            max_items = self._bounds.max_row_numbers if is_row else max_items
        if parent is not None and not is_row:
            self._count(parent)
        self._levels.append(_Level(value, name, max_items, is_row))

    def _end(self) -> None:
        level = self._levels.pop()
        if self._levels:
            self._store(self._levels[-1], level.value)
        else:
            self._result = level.value

    def _put(self, level: _Level | None, value: Any) -> None:
        if level is None:
            raise _not_an_object()
        self._count(level)
        self._store(level, value)

    def _count(self, level: _Level) -> None:
        """Count one more value before it is built."""
        self._num_values += 1
        if self._num_values > self._max_values:
            raise InvalidRequest(
                f"The body holds more than {self._max_values:,} values; send fewer in one request."
            )
        if isinstance(level.value, list) and len(level.value) >= level.max_items:
            raise self._too_many_items(level)

    def _too_many_items(self, level: _Level) -> InvalidRequest | PayloadTooLarge:
        message = (
            f"{level.name[:60]!r} holds more than {level.max_items:,} items; "
            f"at most {level.max_items:,} are allowed in one request."
        )
        if level.name in self._bounds.counted:
            return PayloadTooLarge(message)
        return InvalidRequest(message)

    def _store(self, level: _Level, value: Any) -> None:
        if isinstance(level.value, list):
            level.value.append(value)
        else:
            level.value[level.key] = value


def _as_row(numbers: list[float]) -> FloatArray:
    with np.errstate(over="ignore"):  # an infinity is refused by `stored_embeddings`
        return np.array(numbers, np.float32)


def _not_an_object() -> InvalidRequest:
    return InvalidRequest('The body must be a JSON object such as {"image": "<base64>"}.')
