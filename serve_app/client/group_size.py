"""How many images the next request carries: more while requests are fast, fewer when one is slow.

Several images in one request cost the service less than several requests. But a request has a time
limit, and its results arrive together.
"""

MAX_IMAGES = 8
"""Largest number of images in one request of `tag_files`."""
FAST_S = 2.0
"""A request that takes less than this lets the next one carry twice as many images."""
SLOW_S = 10.0
"""A request that takes longer than this halves the number: the service ends requests after 60 s by
default."""


class GroupSize:
    """The number of images in the next request, starting with one."""

    def __init__(self, concurrency: int) -> None:
        """Start with one image.

        Args:
            concurrency: Number of images that may be in flight. A request carries at most half of
                them, so that at least two requests are in flight.
        """
        self._max_images = max(1, min(MAX_IMAGES, concurrency // 2))
        self.images = 1

    def note(self, images: int, seconds: float) -> None:
        """Record how long a request with some images took."""
        if seconds > SLOW_S:
            self.images = max(1, min(self.images, images // 2))
        elif seconds < FAST_S and images >= self.images:
            self.images = min(self._max_images, 2 * self.images)
