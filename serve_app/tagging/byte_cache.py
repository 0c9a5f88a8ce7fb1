"""A cache bounded in bytes, for rows of text embeddings and for banks."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

ENTRY_BYTES = 200
"""Memory of an entry besides what `size_of` counts: its objects and its place in the cache."""


class ByteCache(Generic[Key, Value]):
    """A least-recently-used cache, bounded in the bytes of its values."""

    def __init__(self, max_bytes: int, size_of: Callable[[Key, Value], int]) -> None:
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._entries: OrderedDict[Key, Value] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Value | None:
        """Return a value, or None if it is not in the cache."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: Key, value: Value) -> None:
        """Cache a value, unless it is larger than the whole cache."""
        if self._cost(key, value) > self._max_bytes:
            return
        replaced = self._entries.pop(key, None)
        if replaced is not None:
            self.nbytes -= self._cost(key, replaced)
        self.nbytes += self._cost(key, value)
        self._entries[key] = value
        while self.nbytes > self._max_bytes:
            self.nbytes -= self._cost(*self._entries.popitem(last=False))

    def _cost(self, key: Key, value: Value) -> int:
        return self._size_of(key, value) + ENTRY_BYTES
