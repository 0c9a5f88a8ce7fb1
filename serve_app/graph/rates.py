"""Measures the work of one replica as rates, which `graph/autoscaling.py` reads.

This module does not use Ray, and takes the time as an argument.
"""

import threading


class Rates:
    """Counters of one replica that are read as rates since the last reading.

    After the first full batch, the rate per busy second counts only full batches. An encoder
    processes fewer images per second in small batches. If these counted, more encoders would make
    the batches smaller, and autoscaling would add even more encoders.
    """

    def __init__(self, now_s: float) -> None:
        self._lock = threading.Lock()  # counted in worker threads, read on the event loop
        self._since_s = now_s
        self._arrived = 0
        self._done = 0
        self._busy_s = 0.0
        self._seen_full = False
        self._per_busy_second: float | None = None

    def arrive(self, images: int) -> None:
        """Count arrived images."""
        with self._lock:
            self._arrived += images

    def work(self, images: int, busy_s: float, full: bool = True) -> None:
        """Count finished work.

        Args:
            images: Number of images.
            busy_s: Time in seconds that they took.
            full: Whether the batch was about as large as this replica's maximum.
        """
        with self._lock:
            if full and not self._seen_full:
                self._seen_full = True
                self._done = 0
                self._busy_s = 0.0
            if full or not self._seen_full:
                self._done += images
                self._busy_s += busy_s

    def read(self, now_s: float) -> tuple[float, float | None]:
        """Return arrivals per second since the last reading, and the last known rate when busy.

        This resets the counters.
        """
        with self._lock:
            arrived = self._arrived
            done = self._done
            busy_s = self._busy_s
            elapsed_s = max(1e-3, now_s - self._since_s)
            self._since_s = now_s
            self._arrived = 0
            self._done = 0
            self._busy_s = 0.0
        if done and busy_s:
            self._per_busy_second = done / busy_s
        return arrived / elapsed_s, self._per_busy_second
