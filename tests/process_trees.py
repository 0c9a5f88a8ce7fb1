"""A process with everything that was ever seen below it, for tests of what is left at its end."""

import contextlib
import time

import psutil

END_WITHIN_S = 60.0
"""Much more than the supervisor's own time-outs, for machines that are busy with other tests."""


class ProcessTree:
    """A process and its descendants.

    Args:
        pid: Of the process, which is a child of this one.
    """

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        self._seen: dict[int, psutil.Process] = {pid: self.root}

    def look(self) -> list[psutil.Process]:
        """Return what is alive; processes that started since the last call are added."""
        for process in list(self._seen.values()):
            with contextlib.suppress(psutil.NoSuchProcess):
                self._seen |= {child.pid: child for child in process.children(recursive=True)}
        return [process for process in self._seen.values() if is_alive(process)]

    def names(self) -> str:
        """Return the names of what is alive, as one text."""
        names = []
        for process in self.look():
            with contextlib.suppress(psutil.NoSuchProcess):
                names.append(process.name())
        return " ".join(names)

    def kill(self) -> None:
        """End everything, also after a failed test."""
        for process in self.look():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def assert_all_end(self) -> None:
        """Assert that no process is left."""
        deadline_s = time.monotonic() + END_WITHIN_S
        while alive := self.look():
            assert time.monotonic() < deadline_s, alive
            time.sleep(0.05)


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process exists and is no zombie, which its parent has yet to collect."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
