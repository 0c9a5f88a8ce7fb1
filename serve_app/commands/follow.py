"""Shows the request lines of the replicas on this machine, as they are written."""

import contextlib
from collections.abc import Callable
from pathlib import Path

MAX_READ_BYTES = 2**20
"""Read of one file at a time; a longer line is shown in parts."""
RAY_MARKS = (":", "\x1b[")
"""How the lines begin that Ray itself writes into the files: what runs in them, and colours of its
own notices."""


class FollowedRequests:
    """The standard output of a node's worker processes, from now on."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._read: dict[Path, int] = {}

    def show(self, show_line: Callable[[str], None]) -> None:
        """Hand over every whole line that has come since the last call."""
        for path in self._logs.glob("worker-*.out"):
            seen = self._read.get(path, 0)
            # Ray may delete a file of a worker that has ended at any moment
            with contextlib.suppress(OSError):
                if path.stat().st_size > seen:
                    self._read[path] = seen + self._show_from(path, seen, show_line)

    def _show_from(self, path: Path, start: int, show_line: Callable[[str], None]) -> int:
        """Return how many bytes of whole lines there were."""
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(MAX_READ_BYTES)
        whole = data[: data.rfind(b"\n") + 1]
        if not whole and len(data) == MAX_READ_BYTES:
            whole = data
        for line in whole.decode("utf-8", "replace").splitlines():
            if line and not line.startswith(RAY_MARKS):
                show_line(line)
        return len(whole)
