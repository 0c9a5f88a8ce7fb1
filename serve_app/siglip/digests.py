"""SHA-256 of files, remembered on this machine for large ones.

Reading 3.5 GB takes about three seconds, which every replica would pay at its start. A digest is
remembered with the file's size, times, inode and device; the time of the last change (`ctime`)
cannot be set by programs, so a file whose bytes were replaced is read again even if its
modification time was put back.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from io import BufferedReader
from pathlib import Path

from serve_app.errors import ConfigError
from serve_app.siglip.user_folders import cache_root
from serve_app.untrusted.bounded_files import FileProblem, open_regular, read_json

FOLDER = "digests"
MIN_REMEMBERED_BYTES = 64 * 2**20
"""Smaller files are read each time; a folder of digests would not be faster."""
SETTLED_S = 5.0
"""A file that changed within this time is not remembered: another change might get the same time
stamp."""
MAX_RECORD_BYTES = 4096


def file_digest(path: Path) -> str:
    """Return the SHA-256 of all bytes of a file in hex digits.

    Raises:
        ConfigError: The file is missing or cannot be read.
    """
    with open_regular(path) as file:
        state = _state(os.fstat(file.fileno()))
        if state["size"] < MIN_REMEMBERED_BYTES:
            return _digest(file, path)
        record = _record_path(path)
        remembered = _recall(record, state)
        if remembered is not None:
            return remembered
        digest = _digest(file, path)
        unchanged = _state(os.fstat(file.fileno())) == state
    settled = time.time_ns() - max(state["mtime_ns"], state["ctime_ns"]) > SETTLED_S * 1e9
    if record is not None and unchanged and settled:
        _remember(record, state, digest)
    return digest


def _digest(file: BufferedReader, path: Path) -> str:
    try:
        return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror or type(error).__name__}."
        ) from error


def _state(found: os.stat_result) -> dict[str, int]:
    return {
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
        "inode": found.st_ino,
        "device": found.st_dev,
    }


def _record_path(path: Path) -> Path | None:
    """Return where a file's digest is remembered, or None where there is no cache folder."""
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    try:
        return cache_root() / FOLDER / f"{name[:32]}.json"
    except ConfigError:
        return None


def _recall(record: Path | None, state: dict[str, int]) -> str | None:
    if record is None:
        return None
    try:
        content = read_json(record, MAX_RECORD_BYTES)
    except FileProblem:
        return None
    if not isinstance(content, dict) or content.get("state") != state:
        return None
    digest = content.get("sha256")
    return digest if isinstance(digest, str) and len(digest) == 64 else None


def _remember(record: Path, state: dict[str, int], digest: str) -> None:
    with contextlib.suppress(
        OSError
    ):  # without a place to remember it, the file is read again next time
        record.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=record.parent, prefix=".writing-", delete=False
        ) as file:
            json.dump({"state": state, "sha256": digest}, file)
        os.replace(file.name, record)
