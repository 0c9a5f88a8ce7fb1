"""Reads and writes the files of this machine for `storage.py`.

obstore refuses names that are not UTF-8 or contain control characters, and gives up the whole
folder of such a file. So files are read here. ETags are the same as obstore's.
"""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from io import BufferedReader

from serve_app.errors import PayloadTooLarge
from serve_app.untrusted.image_names import Skipped, files_below

STAGED = ".siglip-serve-"
"""Beginning of the names of files that are being written."""


class NotAFile(OSError):
    """The path is a folder, a pipe or a device."""


def list_files(folder: str, skipped: Skipped | None) -> Iterator[tuple[str, int, str]]:
    """Yield the path, size and ETag of every file below a folder, sorted by path.

    Yields nothing if there is no folder.

    Args:
        folder: Where to start.
        skipped: Counts what is skipped. With None, hidden files are listed too, and nothing may be
            unreadable.

    Raises:
        OSError: The folder itself cannot be read; with None, also if a part of it cannot be.
        ConfigError: The disk or network share fails.
    """
    try:
        with os.scandir(folder):
            pass
    except (FileNotFoundError, NotADirectoryError):
        return
    counts = Skipped() if skipped is None else skipped
    # size and ETag only: the whole status takes 740 bytes per file
    files = sorted(
        (path, status.st_size, etag_of(status))
        for path, status in files_below(folder, counts, with_litter=skipped is None)
    )
    if skipped is None and counts.unreadable.count:
        raise OSError(counts.unreadable.shown[0])
    yield from files


def find_file(path: str) -> tuple[int, str] | None:
    """Return the size and ETag of a file; None if there is none or it is a folder.

    Raises:
        OSError: It cannot be examined.
        ValueError: The path contains a null character.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None if stat.S_ISDIR(status.st_mode) else (status.st_size, etag_of(status))


def etag_of(status: os.stat_result) -> str:
    """Return a text that changes with the content of a file.

    Source: `object_store`'s `local.rs`.
    """
    return f'"{status.st_ino:x}-{status.st_mtime_ns // 1000:x}-{status.st_size:x}"'


def open_file(path: str) -> BufferedReader:
    """Open a regular file for reading; pipes and devices could block forever and are refused.

    Raises:
        OSError: It cannot be opened; `NotAFile` if it is not a regular file.
        ValueError: The path contains a null character.
    """
    # without O_NONBLOCK, opening a pipe waits for a writer
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        is_folder = stat.S_ISDIR(mode)
        raise NotAFile("it is a folder" if is_folder else "it is a pipe or a device, not a file")
    return os.fdopen(descriptor, "rb")


def read_file(path: str, max_bytes: int | None) -> tuple[bytes, str]:
    """Return the content of a file and its ETag.

    Raises:
        PayloadTooLarge: It has more than `max_bytes`.
        OSError: It cannot be read.
        ValueError: The path contains a null character.
    """
    with open_file(path) as file:
        status = os.fstat(file.fileno())
        if max_bytes is not None and status.st_size > max_bytes:
            raise too_large(status.st_size, max_bytes)
        return file.read(max(1, status.st_size)), etag_of(status)


def read_file_range(path: str, start: int, length: int) -> bytes:
    """Return a part of a file.

    Raises:
        OSError: It cannot be read, or ends before that part.
        ValueError: The path contains a null character.
    """
    with open_file(path) as file:
        file.seek(start)
        data = file.read(length)
    if len(data) < length:
        raise OSError("it is shorter than when it was listed")
    return data


def write_file(path: str, data: bytes) -> None:
    """Write a file completely or not at all; missing folders are created.

    Raises:
        OSError: It cannot be written.
        ValueError: The path contains a null character.
    """
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    staged = os.path.join(folder, STAGED + secrets.token_hex(8))
    try:
        with open(staged, "xb") as file:
            file.write(data)
        os.replace(staged, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(staged)
        raise


def too_large(size: int, max_bytes: int) -> PayloadTooLarge:
    """Return the error of an image that is larger than the limit."""
    return PayloadTooLarge(
        f"The image has {size:,} bytes; at most {max_bytes:,} are read (limits.max_image_bytes)."
    )
