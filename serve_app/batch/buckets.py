"""Reads and writes the objects of a bucket through obstore, for `storage.py`.

obstore lists with ETags, reads an object in one request, and writes one completely or not at all.
Credentials and endpoints come from the environment, as the tools of each cloud read them, or from
the options of the storage.

Not here: buckets with keys that obstore refuses (`odd_keys.py`).
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import obstore

from serve_app.batch.local_files import too_large
from serve_app.batch.odd_keys import Entry, is_odd_key, list_after, list_around
from serve_app.batch.store_errors import StoreFailed, why
from serve_app.storage.opening import Options, open_store
from serve_app.untrusted.image_names import Skipped

BUFFER_BYTES = 256 * 2**10
"""Minimum number of bytes that one request for a part of an object reads."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bucket; every method raises the errors of obstore.

    Attributes:
        root: URL of the bucket.
        options: Settings in addition to the environment variables.
    """

    root: str
    options: Options = ()

    @property
    def _store(self) -> Any:
        return open_store(self.root, self.options)

    def list(self, prefix: str, skipped: Skipped) -> Iterator[Entry]:
        """Yield the objects below a prefix, in the order of the store; count unusable keys."""
        last = ""
        try:
            for entry in list_after(self._store, prefix, last):
                yield entry
                last = entry[0]
        except Exception as error:
            if not is_odd_key(error):
                raise
            yield from list_around(self._store, self.root, prefix, last, skipped, error)

    def find(self, key: str) -> tuple[int, str | None] | None:
        """Return the size and ETag of an object; None if there is none."""
        try:
            entry = obstore.head(self._store, key)
        except FileNotFoundError:
            return None
        return entry["size"], entry["e_tag"]

    def read(self, key: str, max_bytes: int | None) -> tuple[bytes, str | None]:
        """Return an object and its ETag; raises `PayloadTooLarge` above `max_bytes`."""
        response = obstore.get(self._store, key)
        size = response.meta["size"]
        if max_bytes is not None and size > max_bytes:
            raise too_large(size, max_bytes)
        return bytes(response.bytes()), response.meta["e_tag"]

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Return a part of an object."""
        return bytes(obstore.get_range(self._store, key, start=start, length=length))

    def open(self, key: str) -> IO[bytes]:
        """Return an object as a seekable file; reading it raises `StoreFailed`."""
        reader = obstore.open_reader(self._store, key, buffer_size=BUFFER_BYTES)
        return io.BufferedReader(_ObjectFile(reader), BUFFER_BYTES)

    def write(self, key: str, data: bytes) -> None:
        """Write an object, completely or not at all."""
        obstore.put(self._store, key, data, use_multipart=False)

    def delete(self, key: str) -> None:
        """Delete an object."""
        obstore.delete(self._store, key)


class _ObjectFile(io.RawIOBase):
    """An object as a raw file; pyarrow and tarfile need `closed`, which obstore's own lacks."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self._reader.tell())

    def readinto(self, buffer: Any) -> int:
        try:
            data = bytes(self._reader.read(len(buffer)))
        except Exception as error:
            raise StoreFailed(why(error)) from error
        buffer[: len(data)] = data
        return len(data)
