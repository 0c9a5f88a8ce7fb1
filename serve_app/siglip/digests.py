"""SHA-256 digests of files, cached on this machine for large ones.

Reading 3.5 GB takes about three seconds, and every replica would do so at start-up. A digest is
cached with the file's size, times, inode and device. Programs cannot set the time of the last
change (`ctime`), so a file with replaced bytes is read again even if its modification time was
reset.
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
MIN_CACHED_BYTES = 64 * 2**20
"""Smaller files are read every time, because looking up the cache would not be faster."""
SETTLED_S = 5.0
"""The digest of a file that changed within this time is not cached.

Another change might get the same time stamp.
"""
MAX_RECORD_BYTES = 4096


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hex digits.

    Raises:
        ConfigError: The file is missing or cannot be read.
    """
    with open_regular(path) as file:
        state = _state(os.fstat(file.fileno()))
        if state["size"] < MIN_CACHED_BYTES:
            return _digest(file, path)
        record = _record_path(path)
        cached = _load(record, state)
        if cached is not None:
            return cached
        digest = _digest(file, path)
        unchanged = _state(os.fstat(file.fileno())) == state
    settled = time.time_ns() - max(state["mtime_ns"], state["ctime_ns"]) > SETTLED_S * 1e9
    if record is not None and unchanged and settled:
        _store(record, state, digest)
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
    """Return the path of a file's cached digest, or None if there is no cache folder."""
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    try:
        return cache_root() / FOLDER / f"{name[:32]}.json"
    except ConfigError:
        return None


def _load(record: Path | None, state: dict[str, int]) -> str | None:
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


def _store(record: Path, state: dict[str, int], digest: str) -> None:
    # If the digest cannot be stored, the file is read again next time.
    with contextlib.suppress(OSError):
        record.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=record.parent, prefix=".writing-", delete=False
        ) as file:
            json.dump({"state": state, "sha256": digest}, file)
        os.replace(file.name, record)
