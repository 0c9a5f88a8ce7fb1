"""URLs of inputs and outputs: local files, objects of `s3://`, `gs://` and `az://`, web addresses.

The path of a `file://` URL is written as it is in the file system, without escapes. URLs are stored
as Unicode, so a path whose bytes are not UTF-8 becomes a `file-bytes://` URL with escapes.
"""

import contextlib
import os
import re
from collections.abc import Callable
from urllib.parse import quote, unquote_to_bytes, urlsplit

from serve_app.errors import ConfigError
from serve_app.terminal.printable import printable

SCHEMES = ("file", "s3", "s3a", "gs", "az", "abfs", "abfss")
WEB = ("http", "https")
_FILE = "file://"
FILE_BYTES = "file-bytes://"
"""Scheme of local paths that are not UTF-8."""
_SCHEME = re.compile("([A-Za-z][A-Za-z0-9+.-]*)://")


def url_of(text: str, realpath: Callable[[str], str] = os.path.realpath) -> str:
    """Return the URL that an argument names: a path becomes a `file://` URL.

    `.` and `..` are resolved. In a bucket, `..` does not lead above its root.

    Args:
        text: A path or URL.
        realpath: Resolves links; a caller with many paths can cache it.

    Raises:
        ConfigError: The scheme cannot be read.
    """
    found = _SCHEME.match(text)
    if found is None:
        return file_url(_absolute(os.path.expanduser(text), realpath))
    scheme = found[1].lower()
    if text.startswith(FILE_BYTES):
        return text
    if scheme not in SCHEMES + WEB:
        readable = ", ".join(f"{name}://" for name in (*SCHEMES, *WEB))
        raise ConfigError(
            f"{text.split('?')[0]}: {scheme}:// cannot be read; use a path or one of {readable}."
        )
    rest = text[found.end() :]
    if scheme == "file":
        return file_url(_absolute(_path_of_file_url(rest), realpath))
    if scheme in WEB:
        return f"{scheme}://{rest}"
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}/{_without_dots(key)}".rstrip("/")


def url_beside(url: str, text: str, realpath: Callable[[str], str] = os.path.realpath) -> str:
    """Return the URL that a manifest names; a relative path starts at the manifest's folder.

    Args:
        url: URL of the manifest.
        text: A path or URL.
        realpath: See `url_of`.

    Raises:
        ConfigError: The scheme cannot be read.
    """
    if text.startswith("/") or _SCHEME.match(text):
        return url_of(text, realpath)
    folder = folder_of(url)
    if is_local(folder):
        return url_of(os.path.join(local_path(folder), text), realpath)
    return url_of(f"{folder}/{text}")


def shown_url(url: str) -> str:
    """Return a URL as it is shown and stored in rows.

    A local file is shown as its path. A web address is shown without user and query, which may
    contain secrets.
    """
    if url.startswith(FILE_BYTES):
        return printable(local_path(url))
    if url.startswith(_FILE):
        return url.removeprefix(_FILE)
    parts = urlsplit(url)
    if parts.scheme in WEB:
        return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
    return url


def joined(url: str, *names: str) -> str:
    """Return the URL of something below another."""
    if is_local(url):
        return file_url("/".join([local_path(url).rstrip("/"), *names]))
    return "/".join([url.rstrip("/"), *names])


def path_below(url: str, folder: str) -> str | None:
    """Return the path of an object below a folder, without escapes; None if it is not below it."""
    if is_local(url) != is_local(folder):
        return None
    path = local_path(url) if is_local(url) else url
    start = local_path(folder) if is_local(folder) else folder
    below = start.rstrip("/") + "/"
    return path.removeprefix(below) if path.startswith(below) else None


def folder_of(url: str) -> str:
    """Return the URL of the folder that contains an object."""
    return url.rsplit("/", 1)[0]


def name_of(url: str) -> str:
    """Return the last part of a URL's path."""
    return shown_url(url).rstrip("/").rsplit("/", 1)[-1]


def is_local(url: str) -> bool:
    """Return whether a URL names a file of this machine."""
    return url.startswith((_FILE, FILE_BYTES))


def is_web(url: str) -> bool:
    """Return whether a URL is a web address."""
    return url.partition("://")[0] in WEB


def local_path(url: str) -> str:
    """Return the path of a local URL; bytes that are not UTF-8 become surrogate escapes."""
    if url.startswith(FILE_BYTES):
        return os.fsdecode(unquote_to_bytes(url.removeprefix(FILE_BYTES)))
    return url.removeprefix(_FILE) or "/"


def file_url(path: str) -> str:
    """Return the URL of an absolute path, which is not changed."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return FILE_BYTES + quote(path.encode("utf-8", "surrogateescape"), safe="/")
    return _FILE + path


def split(url: str) -> tuple[str, str]:
    """Return the URL of a bucket, and the key of an object in it.

    Raises:
        ConfigError: The scheme cannot be read.
    """
    found = _SCHEME.match(url)
    if found is None or found[1] not in SCHEMES:
        raise ConfigError(f"{url.partition('://')[0]}:// cannot be read here")
    bucket, _, path = url[found.end() :].partition("/")
    return f"{found[1]}://{bucket}", path


def _absolute(path: str, realpath: Callable[[str], str]) -> str:
    """Return an absolute path without `.` and `..`, as the kernel resolves them.

    After a link to a folder, `..` leads to the parent of the link's target. So links are resolved,
    but only in front of a `..`: the rest of the path stays as it was written.
    """
    whole = path if path.startswith("/") else os.path.join(os.getcwd(), path)
    names = whole.split("/")
    if ".." in names:
        end = len(names) - names[::-1].index("..")
        # for example a null character: the error is reported when the file is read
        with contextlib.suppress(OSError, ValueError):
            whole = os.path.join(realpath("/".join(names[:end])), *names[end:])
    return "/" + os.path.normpath(whole).lstrip("/")


def _path_of_file_url(rest: str) -> str:
    """Return the path of a `file://` URL, which people write with or without escapes."""
    path = "/" + rest.lstrip("/")
    if "%" in path and not os.path.lexists(path):
        unescaped = os.fsdecode(unquote_to_bytes(path))
        return unescaped if os.path.lexists(unescaped) else path
    return path


def _without_dots(key: str) -> str:
    """Return a key without `.` and `..`.

    Source: RFC 3986, 5.2.4; empty segments stay, as keys have them.
    """
    kept: list[str] = []
    for segment in key.split("/"):
        if segment == "..":
            kept = kept[:-1]
        elif segment != ".":
            kept.append(segment)
    return "/".join(kept)
