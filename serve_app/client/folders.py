"""Many files, a few at a time: which they are, and which are tagged, awaited and given next.

The same for both clients.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from serve_app.client.answers import Tagged
from serve_app.errors import ConfigError, TaggerError
from serve_app.untrusted.image_files import images_in

AHEAD = 4
"""In the order of input: answers held back at most, as multiples of the concurrency, while the one
before them is awaited."""

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
"""Files, and folders of pictures: one, or several."""
F = TypeVar("F", Future["TaggedFile"], asyncio.Task["TaggedFile"])


@dataclass(frozen=True, slots=True)
class TaggedFile:
    """One file, and its tags or why it has none."""

    path: Path
    outcome: Tagged | TaggerError


def files_of(paths: Paths) -> Iterator[Path]:
    """Yield files in the order given, a folder as the pictures in it; whether they are there is
    seen when they are read.
    """
    for given in (paths,) if isinstance(paths, str | os.PathLike) else paths:
        path = Path(given)
        if os.path.isdir(path):
            yield from images_in(path)
        else:
            yield path


class Window(Generic[F]):
    """The files of a run that have been started and not been given out.

    Args:
        files: What is to be tagged; taken one by one.
        start: Starts one; its file is read when its turn comes, so that only `concurrency` pictures
            are in memory.
        concurrency: How many run at the same time.
        in_order: Give them out in the order of `files`, instead of as they end.

    Raises:
        ConfigError: `concurrency` is less than 1.
    """

    def __init__(
        self, files: Iterator[Path], start: Callable[[Path], F], concurrency: int, in_order: bool
    ) -> None:
        if concurrency < 1:
            raise ConfigError(f"concurrency is {concurrency}; it must be at least 1.")
        self._start: Callable[[Path], F] = start
        self._files = files
        self._concurrency = concurrency
        self._in_order = in_order
        self._held: deque[F] = deque()

    def refill(self) -> bool:
        """Start as many as may run, and return whether there is anything left to give out."""
        while (
            len(self.running()) < self._concurrency and len(self._held) < AHEAD * self._concurrency
        ):
            file = next(self._files, None)
            if file is None:
                break
            self._held.append(self._start(file))
        return bool(self._held)

    def running(self) -> list[F]:
        """Return what has not ended."""
        return [future for future in self._held if not future.done()]

    def take(self) -> list[TaggedFile]:
        """Return what has ended and whose turn it is."""
        ended: list[TaggedFile] = []
        if self._in_order:
            while self._held and self._held[0].done():
                ended.append(self._held.popleft().result())
            return ended
        for _ in range(len(self._held)):
            future = self._held.popleft()
            if future.done():
                ended.append(future.result())
            else:
                self._held.append(future)
        return ended

    def cancel(self) -> list[F]:
        """End what is running, and return it."""
        for future in self._held:
            future.cancel()
        return list(self._held)
