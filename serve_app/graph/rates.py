"""What one replica did, as rates that `graph/autoscaling.py` goes by.

No Ray, no clock of its own.
"""

import threading


class Rates:
    """Counters of one replica that are read as rates: what happened since they were read last.

    What a busy second does is taken from full work only, once there was any: an encoder does fewer
    images a second in small batches, and if those counted, more encoders would make the batches
    smaller and ask for more encoders.
    """

    def __init__(self, now_s: float) -> None:
        self._lock = threading.Lock()  # counted in worker threads, read on the event loop
        self._since_s = now_s
        self._arrived = self._done = 0
        self._busy_s = 0.0
        self._seen_full = False
        self._per_busy_second: float | None = None

    def arrive(self, images: int) -> None:
        """Add images that came in."""
        with self._lock:
            self._arrived += images

    def work(self, images: int, busy_s: float, full: bool = True) -> None:
        """Add work that was done; `full` says whether it was as much at once as this replica takes,
        or nearly.
        """
        with self._lock:
            if full and not self._seen_full:
                self._seen_full = True
                self._done = 0
                self._busy_s = 0.0
            if full or not self._seen_full:
                self._done = self._done + images
                self._busy_s = self._busy_s + busy_s

    def read(self, now_s: float) -> tuple[float, float | None]:
        """Return arrivals a second since the last reading, and images a busy second, the last
        known; starts anew.
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
