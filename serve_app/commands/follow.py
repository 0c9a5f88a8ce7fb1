"""Follows the request log of the replicas on this machine."""

import contextlib
from collections.abc import Callable
from pathlib import Path

MAX_READ_BYTES = 2**20
"""Maximum number of bytes read from one file at a time; a longer line is split."""
RAY_PREFIXES = (":", "\x1b[")
"""Starts of the lines that Ray itself writes: names of actors and tasks, and coloured notices."""


class FollowedRequests:
    """The standard output of a node's worker processes, from its start."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._offsets: dict[Path, int] = {}

    def show(self, show_line: Callable[[str], None]) -> None:
        """Call `show_line` with each complete line that was written since the last call."""
        for path in self._logs.glob("worker-*.out"):
            offset = self._offsets.get(path, 0)
            # Ray may delete the file of a worker that has exited at any time
            with contextlib.suppress(OSError):
                if path.stat().st_size > offset:
                    self._offsets[path] = offset + self._show_from(path, offset, show_line)

    def _show_from(self, path: Path, start: int, show_line: Callable[[str], None]) -> int:
        """Show the complete lines after an offset, and return their size in bytes."""
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(MAX_READ_BYTES)
        complete = data[: data.rfind(b"\n") + 1]
        if not complete and len(data) == MAX_READ_BYTES:
            complete = data
        for line in complete.decode("utf-8", "replace").splitlines():
            if line and not line.startswith(RAY_PREFIXES):
                show_line(line)
        return len(complete)
