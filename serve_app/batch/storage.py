"""Where inputs and outputs lie: folders, `s3://`, `gs://` and `az://` prefixes, through obstore.

obstore lists with ETags, reads an object in one request and writes one whole or not at all. Credentials and endpoints
come from the environment as each cloud's own tools read them, or from `options`.
"""

import functools
import io
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import unquote, urlsplit

from serve_app.batch.web import read_web
from serve_app.errors import ConfigError, PayloadTooLarge, SourceUnavailable

logger = logging.getLogger(__name__)

SCHEMES = ("file", "s3", "s3a", "gs", "az", "abfs", "abfss")
WEB = ("http", "https")
TIMEOUT = "60s"
MAX_RETRIES = 8
"""Of a request that the store refuses for the moment or that breaks off, with growing pauses; obstore does them."""
BUFFER = 256 * 2**10
"""Bytes that one request for a part of an object brings at least."""


class Stored(NamedTuple):
    """One object: its URL, its size in bytes and its ETag, which changes whenever its content does."""

    url: str
    size: int
    etag: str | None


def url_of(text: str) -> str:
    """Return the URL that an argument names: a path becomes a `file://` URL, as it is written in the file system.

    Raises:
        ConfigError: The scheme is none that can be read.
    """
    if "://" not in text:
        return f"file://{Path(text).expanduser().absolute()}"
    scheme = text.split("://", 1)[0].lower()
    if scheme not in SCHEMES + WEB:
        raise ConfigError(
            f"{text.split('?')[0]}: {scheme}:// cannot be read; use a path or one of {', '.join(f'{s}://' for s in SCHEMES)}."
        )
    return text.rstrip("/") if text.count("/") > 2 else text


def shown_url(url: str) -> str:
    """Return a URL as people are shown it: a path where it is one, and no user or query, which may hold secrets."""
    if url.startswith("file://"):
        return url.removeprefix("file://")
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}" if parts.scheme in WEB else url


def joined(url: str, *names: str) -> str:
    """Return the URL of something below another."""
    return "/".join([url.rstrip("/"), *names])


@dataclass(frozen=True, slots=True)
class Storage:
    """Reads and writes whatever a URL names; small, so that it travels with every task.

    Attributes:
        options: Settings of the object store beside its environment variables, such as `("endpoint", "http://127.0.0.1:9000")`.
    """

    options: tuple[tuple[str, str], ...] = ()

    def list(self, url: str) -> Iterator[Stored]:
        """Yield everything below a prefix, in the order of the store; that of a folder is sorted.

        Raises:
            ConfigError: It cannot be read.
        """
        import obstore

        root, path = _split(url)
        found: Iterator[Stored]
        try:
            pages = obstore.list(self._store(root), prefix=path or None, chunk_size=1000)
            found = (Stored(f"{root}/{entry['path']}", entry["size"], entry["e_tag"]) for page in pages for entry in page)
            if root == "file://":
                found = iter(self._sorted(found, path))
            yield from found
        except Exception as error:
            raise ConfigError(f"{shown_url(url)} cannot be listed: {why(error)}.") from error

    def _sorted(self, found: Iterator[Stored], path: str) -> Sequence[Stored]:
        """Return the files below a folder; where obstore gives the folder up for one of them, all the others."""
        try:
            return sorted(found)
        except Exception as error:
            if not os.path.isdir("/" + path):
                raise
            logger.debug("/%s is listed file by file: %s", path, why(error))
        listed: list[Stored] = []
        problems: list[OSError] = []
        skipped = 0
        for folder, _, names in os.walk("/" + path, onerror=problems.append):
            for name in names:
                try:
                    one = self.find(f"file://{folder}/{name}")
                except (ConfigError, ValueError):  # a name that is not UTF-8, or has control characters
                    one = None
                skipped += one is None
                listed += [] if one is None else [one]
        logger.warning(
            "/%s: %d files are left out, whose names are not UTF-8 or hold control characters, and %d folders that cannot be read",
            path,
            skipped,
            len(problems),
        )
        return sorted(listed)

    def find(self, url: str) -> Stored | None:
        """Return what is known of one object, or None where there is none.

        Raises:
            ConfigError: The store cannot be asked.
        """
        import obstore

        root, path = _split(url)
        try:
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

        if url.partition("://")[0] in WEB:
            return read_web(url, most)
        root, path = _split(url)
        _check_regular(root, path)
        try:
            answer = obstore.get(self._store(root), path)
            if most is not None and answer.meta["size"] > most:
                raise _too_large(answer.meta["size"], most)
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

        root, path = _split(url)
        _check_regular(root, path)
        try:
            return bytes(obstore.get_range(self._store(root), path, start=start, length=length))
        except Exception as error:
            raise SourceUnavailable(f"The object cannot be read: {why(error)}.") from error

    def open(self, url: str) -> IO[bytes]:
        """Return an object as a file that can be sought in; reading it raises `StoreFailed` where the store does not answer.

        Raises:
            ConfigError: It cannot be opened.
        """
        import obstore

        root, path = _split(url)
        try:
            return io.BufferedReader(_Reader(obstore.open_reader(self._store(root), path, buffer_size=BUFFER)), BUFFER)
        except Exception as error:
            raise ConfigError(f"{shown_url(url)} cannot be read: {why(error)}.") from error

    def write(self, url: str, data: bytes) -> None:
        """Write one object, whole or not at all, over what may be there.

        Raises:
            ConfigError: It cannot be written.
        """
        import obstore

        root, path = _split(url)
        try:
            obstore.put(self._store(root), path, data, use_multipart=False)
        except Exception as error:
            raise ConfigError(f"{shown_url(url)} cannot be written: {why(error)}.") from error

    def delete(self, url: str) -> None:
        """Delete one object; one that is not there is fine.

        Raises:
            ConfigError: It cannot be deleted.
        """
        import obstore

        root, path = _split(url)
        try:
            obstore.delete(self._store(root), path)
        except FileNotFoundError:
            return
        except Exception as error:
            raise ConfigError(f"{shown_url(url)} cannot be deleted: {why(error)}.") from error

    def _store(self, root: str) -> Any:
        try:
            return _open_store(root, self.options)
        except ImportError as error:
            raise ConfigError("object storage needs obstore; install siglip-serve[batch].") from error


class StoreFailed(OSError):
    """The store did not answer while a file was read, which says nothing of the file."""


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


def why(error: Exception) -> str:
    """Return in a few words what a store said, without its debug output."""
    kinds = {
        "PermissionDeniedError": "access is denied",
        "UnauthenticatedError": "the credentials are not accepted",
        "FileNotFoundError": "it is not there",
        "NotFoundError": "it is not there",
        "IsADirectoryError": "it is a folder",
    }
    name = type(error).__name__
    return kinds.get(name) or f"{name}, {str(error).strip().splitlines()[0][:200] if str(error).strip() else 'without a reason'}".rstrip(
        "."
    )


@functools.cache
def _open_store(root: str, options: tuple[tuple[str, str], ...]) -> Any:
    """Return the store of a bucket, or of the whole file system for `file://`; one a process, since it keeps connections."""
    from obstore.store import LocalStore, from_url

    if root == "file://":
        return LocalStore()
    config = dict(options)
    endpoint = config.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
    extra: dict[str, Any] = {"client_options": {"timeout": TIMEOUT, "allow_http": endpoint.startswith("http://")}}
    extra["retry_config"] = {"max_retries": MAX_RETRIES}
    if root.startswith("s3") and _wants_boto3(config):
        from obstore.auth.boto3 import Boto3CredentialProvider

        extra["credential_provider"] = Boto3CredentialProvider()
    return from_url(root, config=config or None, **extra)


def _wants_boto3(config: dict[str, str]) -> bool:
    """Whether the credentials are those of a profile, which only boto3 can read."""
    return "AWS_PROFILE" in os.environ and "access_key_id" not in config and find_spec("boto3") is not None


def _split(url: str) -> tuple[str, str]:
    """Return the root that a store is opened for, and the path below it."""
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        return "file://", rest.lstrip("/")
    bucket, _, path = rest.partition("/")
    return f"{scheme}://{bucket}", path


def _check_regular(root: str, path: str) -> None:
    """Refuse pipes and devices of this machine, whose reading may never end.

    Raises:
        SourceUnavailable: The path names one.
    """
    if root != "file://":
        return
    try:
        mode = os.stat("/" + path).st_mode
    except (OSError, ValueError):
        return  # the store says what is wrong
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise SourceUnavailable("The object cannot be read: it is a pipe or a device, not a file.")


def _too_large(size: int, most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The picture has {size:,} bytes; at most {most:,} are read (limits.max_image_bytes).")


def folder_of(url: str) -> str:
    """Return the URL of the folder that holds an object."""
    return url.rsplit("/", 1)[0]


def name_of(url: str) -> str:
    """Return the last part of a URL's path, readable."""
    return unquote(url.rstrip("/").rsplit("/", 1)[-1])
