"""Reads untrusted files: only regular files, with limits on size and time.

A configuration may name a pipe that never ends, a device, a file of terabytes, or a file on a
network share whose server is unreachable. This module reads every file that a user names. Files
that this package or Ray wrote are read directly.

Not here: YAML (`yaml_files.py`), responses of servers (`bounded_http.py`), images.
"""

import codecs
import json
import math
import os
import stat
import threading
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from serve_app.errors import ConfigError

MAX_TEXT_BYTES = 64 * 2**20
"""Maximum size of a configuration, vocabulary, table or other text file."""
MAX_JSON_BYTES = 16 * 2**20
"""Maximum size of a JSON file of a checkpoint. The index of the largest SigLIP has about 0.1 MB."""
PART_BYTES = 2**20
"""Size of one read, because `read` allocates the requested size even for a small file."""

T = TypeVar("T")


class FileProblem(ConfigError):
    """A file cannot be read; the message names the file and says why."""


class FileMissing(FileProblem):
    """A file does not exist."""


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; refuse pipes, devices and folders without waiting.

    Args:
        path: The file; a link is followed.

    Raises:
        FileMissing: It does not exist.
        FileProblem: It cannot be opened, or is not a regular file.
    """
    try:
        # without O_NONBLOCK, opening a pipe waits for a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileMissing(f"{path} does not exist.") from error
    except (OSError, ValueError) as error:
        raise FileProblem(f"{path} cannot be read: {_reason(error)}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileProblem(
            f"{path} cannot be read: it is not a regular file but a folder, pipe or device."
        )
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Return the bytes of a regular file.

    Args:
        path: The file; a link is followed.
        max_bytes: Maximum size; reading stops with an error beyond it.

    Raises:
        FileMissing: It does not exist.
        FileProblem: It cannot be read, is not a regular file, or is too large.
    """
    data = bytearray()
    with open_regular(path) as file:
        try:
            while part := file.read(PART_BYTES):  # in parts, because the file may grow
                data += part
                if len(data) > max_bytes:
                    raise FileProblem(
                        f"{path} has more than {max_bytes:,} bytes, which is too large for this "
                        "kind of file."
                    )
        except OSError as error:
            raise FileProblem(f"{path} cannot be read: {_reason(error)}.") from error
    return bytes(data)


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Return the text of a UTF-8 file, or of a UTF-16 file with a byte order mark.

    A UTF-8 file may have a byte order mark. Notepad and Excel on Windows write UTF-16 if the user
    selects "Unicode". All line ends become newlines.

    Raises:
        FileProblem: See `read_regular`; also raised if the file is not UTF-8.
    """
    data = read_regular(path, max_bytes)
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise FileProblem(f"{path}:{line}: not UTF-8; save the file as UTF-8.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Return the content of a JSON file.

    Raises:
        FileProblem: See `read_regular`; also raised if the file is not JSON.
    """
    return parse_json(read_regular(path, max_bytes), str(path))


def parse_json(data: bytes | str, where: str) -> Any:
    """Return the content of a JSON document; refuse numbers that are not finite.

    Args:
        data: The document.
        where: Name of the document in error messages.

    Raises:
        FileProblem: It is not JSON, or nested deeper than Python's recursion limit.
    """
    try:
        return json.loads(data, parse_constant=_refuse_constant, parse_float=_finite_float)
    except RecursionError as error:
        raise FileProblem(f"{where} cannot be read as JSON: it is nested too deeply.") from error
    except ValueError as error:
        raise FileProblem(f"{where} cannot be read as JSON: {error}.") from error


def read_within(read: Callable[[], T], timeout_s: float) -> T:
    """Return the result of a function that may hang, or raise an error after a timeout.

    The function runs in its own thread. If it hangs, the thread continues to run, because Python
    cannot stop a thread.

    Raises:
        TimeoutError: The function did not return within `timeout_s` seconds.
        Exception: The error that the function raised.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(read())
        except BaseException as error:  # re-raised in the caller
            failure.append(error)

    thread = threading.Thread(target=run, name="bounded-read", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError(f"no result within {timeout_s:g} s")
    return outcome[0]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large for a number")
    return value
