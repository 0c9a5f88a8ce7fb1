"""Returns freed memory to the system after a burst of requests."""

import ctypes
import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

STATM = Path("/proc/self/statm")
PAGE_BYTES = 4096
MIN_FREED_BYTES = 64 * 2**20
"""Minimum growth since the last time: returning memory takes some 10 ms for each 100 MiB."""
MIN_PAUSE_S = 2.0


class FreedMemory:
    """Makes the allocator return freed memory when a process that grew is idle.

    glibc keeps freed memory of a few tens of megabytes for the next request, in every thread's arena, and does not return
    it by itself. On other systems this does nothing.
    """

    def __init__(self) -> None:
        """Start from the current memory use."""
        self._trim = _malloc_trim()
        self._resident_bytes = _resident_bytes()
        self._checked_s = time.monotonic()
        self._thread: threading.Thread | None = None

    def look(self, *, is_idle: bool) -> None:
        """Return memory if this process is idle and has grown since the last time; call it every second or so."""
        now_s = time.monotonic()
        under_way = self._thread is not None and self._thread.is_alive()
        if self._trim is None or not is_idle or under_way or now_s - self._checked_s < MIN_PAUSE_S:
            return
        self._checked_s = now_s
        resident_bytes = _resident_bytes()
        if resident_bytes < self._resident_bytes:
            self._resident_bytes = resident_bytes
        if resident_bytes - self._resident_bytes > MIN_FREED_BYTES:
            self._thread = threading.Thread(target=self._return, name="return-memory", daemon=True)
            self._thread.start()

    def _return(self) -> None:
        assert self._trim is not None
        self._trim(0)
        self._resident_bytes = _resident_bytes()


def _malloc_trim() -> Callable[[int], int] | None:
    """Return glibc's `malloc_trim`; None if the C library has none."""
    if sys.platform != "linux":
        return None
    try:
        function = ctypes.CDLL(None).malloc_trim
    except AttributeError:  # musl
        return None
    function.argtypes = [ctypes.c_size_t]
    trim: Callable[[int], int] = function
    return trim


def _resident_bytes() -> int:
    try:
        return int(STATM.read_text(encoding="ascii").split()[1]) * PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0
