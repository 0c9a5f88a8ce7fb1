"""Reads and writes inputs and outputs: files of this machine, and objects of `s3://`, `gs://` and
`az://` through obstore.

obstore lists with ETags, reads an object in one request and writes one whole or not at all.
Credentials and endpoints come from the environment as each cloud's own tools read them, or from
`options`.

Not here: URLs (`urls.py`), files (`local_files.py`), buckets with keys that obstore refuses
(`odd_keys.py`).
"""

import contextlib
import functools
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import IO, Any, NamedTuple

from serve_app.batch import local_files
from serve_app.batch.odd_keys import is_odd_key, list_after, list_around
from serve_app.batch.store_errors import ObjectUnreadable, StoreFailed, concerns_one_object, why
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
from serve_app.untrusted.image_files import Skipped, is_litter

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

TIMEOUT = "60s"
MAX_RETRIES = 8
"""Of a request that the store refuses for the moment or that breaks off, with growing pauses;
obstore does them."""
BUFFER = 256 * 2**10
"""Bytes that one request for a part of an object brings at least."""


class Stored(NamedTuple):
    """One object: its URL, its size in bytes and its ETag, which changes whenever its content
    does.
    """

    url: str
    size: int
    etag: str | None


@dataclass(frozen=True, slots=True)
class Storage:
    """Reads and writes whatever a URL names; small, so that it travels with every task.

    Attributes:
        options: Settings of the object store beside its environment variables, such as
            `("endpoint", "http://127.0.0.1:9000")`.
    """

    options: tuple[tuple[str, str], ...] = ()

    def list(self, url: str, skipped: Skipped | None = None) -> Iterator[Stored]:
        """Yield everything below a prefix, in the order the store returns; files of a folder are
        sorted by path.

        An entry that cannot be used is skipped.

        Args:
            url: Of the prefix or folder.
            skipped: Counts what is skipped. If it is given, hidden files and litter are skipped
                too. Without it, a subfolder that cannot be read is an error.

        Raises:
            ConfigError: It cannot be read at all, or the disk or network share fails.
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

    def _list_bucket(self, url: str, skipped: Skipped | None) -> Iterator[Stored]:
        root, path = split(url)
        listed = (
            Stored(f"{root}/{key}", size, etag)
            for key, size, etag in self._keys(root, path, skipped or Skipped())
        )
        for found in listed:
            if skipped is not None and is_litter(found.url[len(url) :]):
                skipped.hidden += 1
            else:
                yield found

    def _keys(
        self, root: str, path: str, skipped: Skipped
    ) -> Iterator[tuple[str, int, str | None]]:
        store = self._store(root)
        last = ""
        try:
            for entry in list_after(store, path, last):
                yield entry
                last = entry[0]
        except Exception as error:
            if not is_odd_key(error):
                raise
            yield from list_around(store, root, path, last, skipped, error)

    def find(self, url: str) -> Stored | None:
        """Return what is known of one object, or None where there is none.

        Raises:
            ConfigError: The store cannot be asked.
        """
        import obstore

        try:
            if is_local(url):
                status = local_files.status_of(local_path(url))
                return (
                    None
                    if status is None
                    else Stored(url, status.st_size, local_files.etag_of(status))
                )
            root, path = split(url)
            entry = obstore.head(self._store(root), path)
        except FileNotFoundError:
            return None
        except Exception as error:
            raise ConfigError(f"{shown_url(url)} cannot be read: {why(error)}.") from error
        return Stored(url, entry["size"], entry["e_tag"])

    def read(self, url: str, most: int | None = None) -> tuple[bytes, str | None]:
        """Return one object and its ETag.

        Args:
            url: Of the object.
            most: Bytes that are read at most.

        Raises:
            PayloadTooLarge: It has more bytes.
            SourceUnavailable: It is not there or cannot be read.
        """
        import obstore

        if is_web(url):
            return read_web(url, most)
        try:
            if is_local(url):
                return local_files.read_file(local_path(url), most)
            root, path = split(url)
            answer = obstore.get(self._store(root), path)
            if most is not None and answer.meta["size"] > most:
                raise local_files.too_large(answer.meta["size"], most)
            return bytes(answer.bytes()), answer.meta["e_tag"]
        except PayloadTooLarge:
            raise
        except Exception as error:
            raise SourceUnavailable(f"The object cannot be read: {why(error)}.") from error

    def read_range(self, url: str, start: int, length: int) -> bytes:
        """Return a part of an object.

        Raises:
            SourceUnavailable: It is not there or cannot be read.
        """
        import obstore

        try:
            if is_local(url):
                return local_files.read_file_range(local_path(url), start, length)
            root, path = split(url)
            return bytes(obstore.get_range(self._store(root), path, start=start, length=length))
        except Exception as error:
            raise SourceUnavailable(f"The object cannot be read: {why(error)}.") from error

    def open(self, url: str) -> IO[bytes]:
        """Return an object as a file that can be sought in; reading it raises `StoreFailed` where
        the store does not answer.

        Raises:
            ObjectUnreadable: It cannot be opened, and others may be.
            ConfigError: The store does not answer.
        """
        import obstore

        try:
            if is_local(url):
                return local_files.open_file(local_path(url))
            root, path = split(url)
            return io.BufferedReader(
                _Reader(obstore.open_reader(self._store(root), path, buffer_size=BUFFER)), BUFFER
            )
        except Exception as error:
            kind = ObjectUnreadable if is_local(url) or concerns_one_object(error) else ConfigError
            raise kind(f"{shown_url(url)} cannot be read: {why(error)}.") from error

    def write(self, url: str, data: bytes) -> None:
        """Write one object, whole or not at all, over what may be there.

        Raises:
            ConfigError: It cannot be written.
        """
        import obstore

        try:
            if is_local(url):
                local_files.write_file(local_path(url), data)
                return
            root, path = split(url)
            obstore.put(self._store(root), path, data, use_multipart=False)
        except Exception as error:
            raise ConfigError(f"{shown_url(url)} cannot be written: {why(error)}.") from error

    def delete(self, url: str) -> None:
        """Delete one object; one that is not there is fine.

        Raises:
            ConfigError: It cannot be deleted.
        """
        import obstore

        try:
            with contextlib.suppress(FileNotFoundError):
                if is_local(url):
                    os.unlink(local_path(url))
                else:
                    root, path = split(url)
                    obstore.delete(self._store(root), path)
        except Exception as error:
            raise ConfigError(f"{shown_url(url)} cannot be deleted: {why(error)}.") from error

    def _store(self, root: str) -> Any:
        try:
            return _open_store(root, self.options)
        except ImportError as error:
            raise ConfigError(
                "object storage needs obstore; install siglip-serve[batch]."
            ) from error


class _Reader(io.RawIOBase):
    """An object as a raw file; obstore's own has no `closed` that pyarrow and tarfile could ask."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._inner.seek(offset, whence))

    def tell(self) -> int:
        return int(self._inner.tell())

    def readinto(self, buffer: Any) -> int:
        try:
            data = bytes(self._inner.read(len(buffer)))
        except Exception as error:
            raise StoreFailed(why(error)) from error
        buffer[: len(data)] = data
        return len(data)


@functools.cache
def _open_store(root: str, options: tuple[tuple[str, str], ...]) -> Any:
    """Return the store of a bucket; one a process, since it keeps connections."""
    from obstore.store import from_url

    config = dict(options)
    endpoint = (
        config.get("endpoint")
        or os.environ.get("AWS_ENDPOINT_URL")
        or os.environ.get("AWS_ENDPOINT")
        or ""
    )
    extra: dict[str, Any] = {
        "client_options": {"timeout": TIMEOUT, "allow_http": endpoint.startswith("http://")}
    }
    extra["retry_config"] = {"max_retries": MAX_RETRIES}
    if root.startswith("s3") and _wants_boto3(config):
        from obstore.auth.boto3 import Boto3CredentialProvider

        extra["credential_provider"] = Boto3CredentialProvider()
    return from_url(root, config=config or None, **extra)


def _wants_boto3(config: dict[str, str]) -> bool:
    """Whether the credentials are those of a profile, which only boto3 can read."""
    return (
        "AWS_PROFILE" in os.environ
        and "access_key_id" not in config
        and find_spec("boto3") is not None
    )
