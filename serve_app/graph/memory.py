"""Returns freed memory to the system after a burst of requests."""

import ctypes
import gc
import logging
import sys
import threading
import time
from collections.abc import Callable

import psutil

logger = logging.getLogger(__name__)

MIN_GROWN_BYTES = 16 * 2**20
"""Growth of a process above its smallest size at which its freed memory is returned.

Returning memory takes about 10 ms per 100 MiB.
"""
MIN_RETURNED_BYTES = 2**20
"""An attempt that returns less than this doubles the pause before the next attempt."""
MIN_PAUSE_S = 2.0
MAX_PAUSE_S = 60.0
"""Bounds of the pause between two attempts."""


class FreedMemory:
    """Makes the allocator return freed memory when a busy process becomes idle.

    glibc keeps tens of megabytes of freed memory in every thread's arena for later requests, and
    does not return it by itself. On other systems, this class does nothing.
    """

    def __init__(self) -> None:
        """Start from the current memory use."""
        self._trim = _malloc_trim()
        self._smallest_bytes = _resident_bytes()
        self._last_attempt_s = time.monotonic()
        self._pause_s = MIN_PAUSE_S
        self._thread: threading.Thread | None = None

    def update(self, *, is_idle: bool) -> None:
        """Return memory if this process is idle and has grown; call this every few seconds."""
        if not is_idle:
            self._pause_s = MIN_PAUSE_S
            return
        now_s = time.monotonic()
        is_running = self._thread is not None and self._thread.is_alive()
        if self._trim is None or is_running or now_s - self._last_attempt_s < self._pause_s:
            return

        resident_bytes = _resident_bytes()
        self._smallest_bytes = min(self._smallest_bytes, resident_bytes)
        if resident_bytes - self._smallest_bytes > MIN_GROWN_BYTES:
            self._last_attempt_s = now_s
            self._thread = threading.Thread(target=self._return, name="return-memory", daemon=True)
            self._thread.start()

    def _return(self) -> None:
        assert self._trim is not None
        before_bytes = _resident_bytes()
        # cancelled requests leave cycles, and an idle interpreter does not collect them
        gc.collect()
        self._trim(0)
        if before_bytes - _resident_bytes() < MIN_RETURNED_BYTES:
            self._pause_s = min(MAX_PAUSE_S, 2 * self._pause_s)
        else:
            self._pause_s = MIN_PAUSE_S


def _malloc_trim() -> Callable[[int], int] | None:
    """Return glibc's `malloc_trim`; None if the C library does not have it."""
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
    return int(psutil.Process().memory_info().rss)
