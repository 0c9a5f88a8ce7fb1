"""`ImageSender`: sends the images of a job to a service, a bounded number at a time."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence

from serve_app.client import AsyncClient
from serve_app.client.calls import Outcome
from serve_app.client.group_size import GroupSize
from serve_app.client.options import Options

READ_AT_ONCE = 16
"""Number of inputs that are read together."""


class ImageSender:
    """A client, and how many inputs may be read and sent at the same time."""

    def __init__(self, client: AsyncClient, concurrency: int) -> None:
        self.size = GroupSize(concurrency)
        self.reading = asyncio.Semaphore(concurrency // READ_AT_ONCE + 1)
        self._client = client
        self._concurrency = concurrency
        self._images = 0
        self._ended = asyncio.Condition()

    async def tag(
        self, images: Sequence[bytes], return_embedding: bool, options: Options
    ) -> list[Outcome]:
        """Tag images in one request as soon as that many more may be in flight."""
        if not images:
            return []
        async with self._in_flight(len(images)):
            started_s = time.monotonic()
            outcomes = await self._client.tag_group(
                images, return_embedding=return_embedding, **options
            )
            self.size.note(len(images), time.monotonic() - started_s)
        return outcomes

    @contextlib.asynccontextmanager
    async def _in_flight(self, images: int) -> AsyncIterator[None]:
        async with self._ended:
            await self._ended.wait_for(lambda: self._images + images <= self._concurrency)
            self._images += images
        try:
            yield
        finally:
            async with self._ended:
                self._images -= images
                self._ended.notify_all()
