"""The thread in which a Postprocessor scores, which keeps its event loop free."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


class ScoringThread:
    """Computes scores in one thread, which requests use in turns."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="score")

    async def first(self, items: Iterator[Item]) -> Item:
        """Compute the first item in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, next, items)

    async def in_turns(self, items: Iterator[Item]) -> AsyncIterator[Item]:
        """Compute each item in the thread, which other requests may use in between."""
        loop = asyncio.get_running_loop()
        while (item := await loop.run_in_executor(self._executor, next, items, None)) is not None:
            yield item
