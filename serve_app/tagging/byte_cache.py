"""A cache bounded in bytes, the least recently used dropped: rows of text embeddings, and banks
made of them.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

ENTRY_BYTES = 200
"""What an entry takes besides what `size_of` counts: objects, its place."""


class ByteCache(Generic[Key, Value]):
    """An LRU of values, bounded in the bytes that they take."""

    def __init__(self, max_bytes: int, size_of: Callable[[Key, Value], int]) -> None:
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._entries: OrderedDict[Key, Value] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Value | None:
        """Return a value, or None if it is not (or no longer) here."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: Key, value: Value) -> None:
        """Keep a value; one larger than the whole cache is not kept."""
        if self._cost(key, value) > self._max_bytes:
            return
        replaced = self._entries.pop(key, None)
        self.nbytes += self._cost(key, value) - (
            0 if replaced is None else self._cost(key, replaced)
        )
        self._entries[key] = value
        while self.nbytes > self._max_bytes:
            self.nbytes -= self._cost(*self._entries.popitem(last=False))

    def _cost(self, key: Key, value: Value) -> int:
        return self._size_of(key, value) + ENTRY_BYTES
