"""Reads and writes inputs and outputs by URL: files of this machine, objects, and web addresses.

Not here: URLs (`urls.py`), files (`local_files.py`), objects (`buckets.py`), the web (`web.py`).
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, NamedTuple

from serve_app.batch import local_files
from serve_app.batch.buckets import Bucket
from serve_app.batch.store_errors import (
    ObjectUnreadable,
    StoreFailed,
    concerns_one_object,
    failing_to_be,
    why,
)
from serve_app.batch.urls import (
    file_url,
    folder_of,
    is_local,
    is_web,
    joined,
    local_path,
    name_of,
    shown_url,
    split,
    url_of,
)
from serve_app.batch.web import read_web
from serve_app.errors import ConfigError, PayloadTooLarge, SourceUnavailable
from serve_app.storage.opening import Options
from serve_app.untrusted.image_names import Skipped, is_litter

__all__ = [
    "ObjectUnreadable",
    "Storage",
    "StoreFailed",
    "Stored",
    "folder_of",
    "joined",
    "name_of",
    "shown_url",
    "url_of",
    "why",
]


class Stored(NamedTuple):
    """One object.

    Attributes:
        url: Its URL.
        size: Its size in bytes.
        etag: Changes whenever its content does; None if the store has none.
    """

    url: str
    size: int
    etag: str | None


@dataclass(frozen=True, slots=True)
class Storage:
    """Reads and writes whatever a URL names; small, so that it travels with every task.

    Attributes:
        options: Settings of the object store in addition to its environment variables.
    """

    options: Options = ()

    def list(self, url: str, skipped: Skipped | None = None) -> Iterator[Stored]:
        """Yield everything below a prefix.

        Files of a folder are sorted by path; objects come in the order of the store. An entry that
        cannot be used is skipped.

        Args:
            url: URL of the prefix or folder.
            skipped: Counts what is skipped. With it, hidden files and litter are skipped too.
                Without it, a subfolder that cannot be read is an error.

        Raises:
            ConfigError: Nothing can be read at all, or the disk or network share fails.
        """
        try:
            if is_local(url):
                for path, size, etag in local_files.list_files(local_path(url), skipped):
                    yield Stored(file_url(path), size, etag)
            else:
                yield from self._list_bucket(url, skipped)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"{shown_url(url)} cannot be listed: {why(error)}.") from error

    def find(self, url: str) -> Stored | None:
        """Return what is known of one object; None if there is none.

        Raises:
            ConfigError: The store does not respond.
        """
        found: tuple[int, str | None] | None
        with failing_to_be("read", url):
            if is_local(url):
                found = local_files.find_file(local_path(url))
            else:
                bucket, key = self._bucket(url)
                found = bucket.find(key)
        return None if found is None else Stored(url, *found)

    def read(self, url: str, max_bytes: int | None = None) -> tuple[bytes, str | None]:
        """Return one object and its ETag.

        Args:
            url: URL of the object.
            max_bytes: Maximum size; None for no limit.

        Raises:
            PayloadTooLarge: It is larger.
            SourceUnavailable: There is none, or it cannot be read.
        """
        if is_web(url):
            return read_web(url, max_bytes)
        try:
            if is_local(url):
                return local_files.read_file(local_path(url), max_bytes)
            bucket, key = self._bucket(url)
            return bucket.read(key, max_bytes)
        except PayloadTooLarge:
            raise
        except Exception as error:
            raise SourceUnavailable(f"The object cannot be read: {why(error)}.") from error

    def read_range(self, url: str, start: int, length: int) -> bytes:
        """Return a part of an object.

        Raises:
            SourceUnavailable: There is no such object, or it cannot be read.
        """
        try:
            if is_local(url):
                return local_files.read_file_range(local_path(url), start, length)
            bucket, key = self._bucket(url)
            return bucket.read_range(key, start, length)
        except Exception as error:
            raise SourceUnavailable(f"The object cannot be read: {why(error)}.") from error

    def open(self, url: str) -> IO[bytes]:
        """Return an object as a seekable file.

        Reading the file raises `StoreFailed` if the store does not respond.

        Raises:
            ObjectUnreadable: The object cannot be opened; others may be readable.
            ConfigError: The store does not respond.
        """
        try:
            if is_local(url):
                return local_files.open_file(local_path(url))
            bucket, key = self._bucket(url)
            return bucket.open(key)
        except Exception as error:
            kind = ObjectUnreadable if is_local(url) or concerns_one_object(error) else ConfigError
            raise kind(f"{shown_url(url)} cannot be read: {why(error)}.") from error

    def write(self, url: str, data: bytes) -> None:
        """Write one object, completely or not at all; an older one is replaced.

        Raises:
            ConfigError: It cannot be written.
        """
        with failing_to_be("written", url):
            if is_local(url):
                local_files.write_file(local_path(url), data)
                return
            bucket, key = self._bucket(url)
            bucket.write(key, data)

    def delete(self, url: str) -> None:
        """Delete one object, if it exists.

        Raises:
            ConfigError: It cannot be deleted.
        """
        with failing_to_be("deleted", url), contextlib.suppress(FileNotFoundError):
            if is_local(url):
                os.unlink(local_path(url))
                return
            bucket, key = self._bucket(url)
            bucket.delete(key)

    def _bucket(self, url: str) -> tuple[Bucket, str]:
        """Return the bucket of an object, and its key."""
        root, key = split(url)
        return Bucket(root, self.options), key

    def _list_bucket(self, url: str, skipped: Skipped | None) -> Iterator[Stored]:
        bucket, prefix = self._bucket(url)
        for key, size, etag in bucket.list(prefix, skipped or Skipped()):
            found = Stored(f"{bucket.root}/{key}", size, etag)
            if skipped is not None and is_litter(found.url[len(url) :]):
                skipped.hidden += 1
            else:
                yield found
