"""Runs a service in a child process and kills every process that it leaves behind.

`timeout`, systemd and terminals send signals to a whole process group. Without a supervisor, a
signal would reach Ray's processes at the same time as the process that shuts them down in order.
HAProxy outlives the actor that starts it, and would continue to listen.

    siglip-serve serve (supervisor)
    └── siglip-serve serve (has its own session, and shuts Ray down in order)
        └── gcs_server, raylet, replicas, HAProxy, …

Only Linux has the two `prctl(2)` calls that make this complete. On other systems, the service is
shut down in order, but processes that it leaves behind are not found.

Not here: shutting down a Ray node in order (`graph/local_node.py`).
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

import psutil

from serve_app.terminal.printable import print_line

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_TIMEOUT_S = 12.0
"""Time in which the service must shut down; afterwards, its processes are killed."""
KILL_TIMEOUT_S = 2.0
"""Maximum time to wait for killed processes: one that waits for a driver or a dead disk cannot
end."""
POLL_S = 0.1
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Source: linux/prctl.h


def supervised(run: Callable[[], int]) -> int:
    """Run a function in a child process with its own session, and leave no process behind.

    The first SIGINT, SIGTERM or SIGHUP is passed to the child as SIGINT, and the child should shut
    down in order. A second one should make it exit immediately. Call this function before the
    process starts threads.

    Returns:
        In the child, what `run` returns. In the parent, the child's exit status, or 128 plus the
        signal number if a signal ended it.
    """
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != parent:  # the parent ended before prctl was called
            return 128 + signal.SIGINT
        return run()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans become children of this process
    return _Supervisor(child).wait()


class _Supervisor:
    """Passes signals to a child, reaps its descendants, and kills those that outlive it."""

    def __init__(self, child: int) -> None:
        self._child = child
        self._deadline_s: float | None = None
        self._status: int | None = None
        for number in STOP_SIGNALS:
            # keep ignoring SIGHUP under nohup; shells also ignore SIGINT for background jobs, but
            # `kill -INT` should end those
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._deadline_s = self._deadline_s or time.monotonic() + STOP_TIMEOUT_S
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGINT)

    def wait(self) -> int:
        """Wait for the child, kill the processes that it left, and return its exit status."""
        while self._status is None:
            self._reap()
            if self._deadline_s is not None and time.monotonic() > self._deadline_s:
                _kill_all_below()
            time.sleep(POLL_S)
        deadline_s = time.monotonic() + KILL_TIMEOUT_S
        while (left := _kill_all_below()) and time.monotonic() < deadline_s:
            self._reap()
            time.sleep(POLL_S)
        if left:
            print_line(
                f"siglip-serve: these processes cannot be killed: {', '.join(map(str, left))}",
                file=sys.stderr,
            )
        return self._status

    def _reap(self) -> None:
        """Collect the exit status of every child that has ended, including adopted orphans."""
        with contextlib.suppress(ChildProcessError):
            while True:
                ended, status = os.waitpid(-1, os.WNOHANG)
                if ended == 0:
                    return
                if ended == self._child:
                    code = os.waitstatus_to_exitcode(status)
                    self._status = code if code >= 0 else 128 - code


def _kill_all_below() -> list[int]:
    """Kill every process below this one, and return their ids."""
    below = psutil.Process().children(recursive=True)
    for process in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return [process.pid for process in below]


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
