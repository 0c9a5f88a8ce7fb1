"""A file of JSON lines that a run is gone on with: what is done is kept, what failed or was cut off
is done again.
"""

import os
from pathlib import Path

from serve_app.errors import InvalidRequest
from serve_app.untrusted.bounded_files import FileProblem, parse_json, read_regular

_BEGINNING = b'{"file": "'
"""Of every line that `json_line` writes."""
MAX_BYTES = 4 * 2**30
"""Of one file: about ten million images."""


def keep_done(path: Path) -> set[str]:
    """Leave the lines without an error in a file of ours, and return the names of their pictures;
    none if it is not there.

    Raises:
        InvalidRequest: It is something else, or it cannot be read or written.
    """
    try:
        content = read_regular(path, MAX_BYTES) if path.exists() else b""
        kept = _done_lines(path, content)
        if b"".join(kept.values()) != content:
            beside = path.with_name(path.name + ".part")
            beside.write_bytes(b"".join(kept.values()))
            os.replace(beside, path)
    except FileProblem as error:
        raise InvalidRequest(f"{path} cannot be read or written: {error}") from error
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read or written: {error.strerror}.") from error
    return set(kept)


def _done_lines(path: Path, content: bytes) -> dict[str, bytes]:
    kept: dict[str, bytes] = {}
    for line in content.splitlines(keepends=True):
        if not line.startswith(_BEGINNING[: len(line)]):
            raise InvalidRequest(
                f"{path} is there and holds no lines of `siglip-serve tag`; name another file."
            )
        if not line.endswith(b"\n"):  # the run before was cut off here
            continue
        try:
            entry = parse_json(line, "the line")
        except FileProblem as error:
            raise InvalidRequest(
                f"{path} holds a line that cannot be read: {line[:60].decode(errors='replace')}"
            ) from error
        if not isinstance(entry.get("file"), str):
            raise InvalidRequest(
                f"{path} holds a line without a file's name: {line[:60].decode(errors='replace')}"
            )
        if "error" not in entry:
            kept[entry["file"]] = line
    return kept
