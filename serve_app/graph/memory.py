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
"""How far above its smallest size a process must be.

Returning memory takes some 10 ms for each 100 MiB.
"""
LITTLE_BYTES = 2**20
MIN_PAUSE_S = 2.0
MAX_PAUSE_S = 60.0
"""The pause between two attempts doubles up to this while they return less than `LITTLE_BYTES`."""


class FreedMemory:
    """Makes the allocator return freed memory when a process is idle after it was busy.

    glibc keeps freed memory of a few tens of megabytes for the next request, in every thread's
    arena, and does not return it by itself. On other systems this does nothing.
    """

    def __init__(self) -> None:
        """Start from the current memory use."""
        self._trim = _malloc_trim()
        self._smallest_bytes = _resident_bytes()
        self._tried_s = time.monotonic()
        self._pause_s = MIN_PAUSE_S
        self._thread: threading.Thread | None = None

    def look(self, *, is_idle: bool) -> None:
        """Return memory if this process is idle and has grown; call it about every second."""
        if not is_idle:
            self._pause_s = MIN_PAUSE_S
            return
        now_s = time.monotonic()
        under_way = self._thread is not None and self._thread.is_alive()
        if self._trim is None or under_way or now_s - self._tried_s < self._pause_s:
            return
        resident_bytes = _resident_bytes()
        self._smallest_bytes = min(self._smallest_bytes, resident_bytes)
        if resident_bytes - self._smallest_bytes > MIN_GROWN_BYTES:
            self._tried_s = now_s
            self._thread = threading.Thread(target=self._return, name="return-memory", daemon=True)
            self._thread.start()

    def _return(self) -> None:
        assert self._trim is not None
        before_bytes = _resident_bytes()
        # requests that were cut off leave cycles, and an idle interpreter does not collect them
        gc.collect()
        self._trim(0)
        is_little = before_bytes - _resident_bytes() < LITTLE_BYTES
        self._pause_s = min(MAX_PAUSE_S, 2 * self._pause_s) if is_little else MIN_PAUSE_S


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
    return int(psutil.Process().memory_info().rss)
