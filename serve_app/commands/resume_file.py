"""The JSON lines of an interrupted run, which `siglip-serve tag --out` resumes.

A resumed run keeps the lines of tagged images, and tags again the images whose lines have an error
or were truncated.
"""

import os
from pathlib import Path

from serve_app.errors import InvalidRequest
from serve_app.untrusted.bounded_files import FileProblem, parse_json, read_regular

_LINE_START = b'{"file": "'
"""Start of every line that `json_line` returns."""
MAX_BYTES = 4 * 2**30
"""Maximum size of a file, which holds about ten million images."""
MAX_QUOTED_BYTES = 60
"""Maximum number of bytes of a line that an error message quotes."""


def keep_tagged(path: Path) -> set[str]:
    """Remove failed and truncated lines from a file, and return the names in the other lines.

    If the file does not exist, the result is empty.

    Raises:
        InvalidRequest: `siglip-serve tag` did not write the file, or it cannot be read or written.
    """
    try:
        content = read_regular(path, MAX_BYTES) if path.exists() else b""
        lines = _tagged_lines(path, content)
        kept = b"".join(lines.values())
        if kept != content:
            temporary = path.with_name(path.name + ".part")
            temporary.write_bytes(kept)
            os.replace(temporary, path)
    except FileProblem as error:
        raise InvalidRequest(f"{path} cannot be read or written: {error}") from error
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read or written: {error.strerror}.") from error
    return set(lines)


def _tagged_lines(path: Path, content: bytes) -> dict[str, bytes]:
    """Return the complete lines without an error, by the name of their image."""
    lines: dict[str, bytes] = {}
    for line in content.splitlines(keepends=True):
        if not line.startswith(_LINE_START[: len(line)]):
            raise InvalidRequest(
                f"{path} exists and was not written by `siglip-serve tag`; choose another file."
            )
        if not line.endswith(b"\n"):  # the previous run was interrupted here
            continue
        try:
            entry = parse_json(line, "the line")
        except FileProblem as error:
            raise InvalidRequest(
                f"{path} contains a line that is not valid JSON: {_quoted(line)}"
            ) from error
        if not isinstance(entry.get("file"), str):
            raise InvalidRequest(f"{path} contains a line without a file name: {_quoted(line)}")
        if "error" not in entry:
            lines[entry["file"]] = line
    return lines


def _quoted(line: bytes) -> str:
    return line.rstrip(b"\n")[:MAX_QUOTED_BYTES].decode(errors="replace")
