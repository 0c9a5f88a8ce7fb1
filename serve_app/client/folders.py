"""Tags many files, a few at a time: lists them, and decides which to start and to return next.

Files are started in groups; the files of a group are sent in one request. Both clients use this
module.
"""

import asyncio
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from serve_app.client.group_size import GroupSize
from serve_app.client.responses import Tagged
from serve_app.errors import ConfigError, TaggerError
from serve_app.untrusted.image_names import images_in

AHEAD = 4
"""Maximum number of files in the window, as a multiple of the concurrency.

If results are returned in input order, those behind a slow file wait in memory.
"""

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
"""One path or several, each of a file or of a folder with images."""
F = TypeVar("F", Future[list["TaggedFile"]], asyncio.Task[list["TaggedFile"]])


@dataclass(frozen=True, slots=True)
class TaggedFile:
    """One file with its tags or its error."""

    path: Path
    outcome: Tagged | TaggerError


def files_of(paths: Paths) -> Iterator[Path]:
    """Yield files in input order, with each folder replaced by the images in it.

    A file that does not exist is yielded too; reading it raises the error.
    """
    for entry in (paths,) if isinstance(paths, str | os.PathLike) else paths:
        path = Path(entry)
        if os.path.isdir(path):
            yield from images_in(path)
        else:
            yield path


class Window(Generic[F]):
    """The files that have been started and whose results have not been returned yet.

    Args:
        files: The files to tag; consumed one by one.
        start: Starts to tag a group of files. It also reads them, so at most `concurrency` images
            are in memory.
        size: Number of files in the next group.
        concurrency: Number of files that are processed at the same time.
        in_order: Whether to return results in the order of `files` instead of as they complete.

    Raises:
        ConfigError: `concurrency` is less than 1.
    """

    def __init__(
        self,
        files: Iterator[Path],
        start: Callable[[list[Path]], F],
        size: GroupSize,
        concurrency: int,
        in_order: bool,
    ) -> None:
        if concurrency < 1:
            raise ConfigError(f"concurrency is {concurrency}; it must be at least 1.")
        self._start: Callable[[list[Path]], F] = start
        self._files = files
        self._size = size
        self._concurrency = concurrency
        self._in_order = in_order
        self._started: deque[tuple[F, int]] = deque()

    def refill(self) -> bool:
        """Start files up to the limits, and return whether any results are still to come."""
        while self._has_room():
            group = list(itertools.islice(self._files, self._size.images))
            if not group:
                break
            self._started.append((self._start(group), len(group)))
        return bool(self._started)

    def running(self) -> list[F]:
        """Return the groups that have not completed."""
        return [future for future, _ in self._started if not future.done()]

    def take(self) -> list[TaggedFile]:
        """Remove and return the results that may be returned now."""
        results: list[TaggedFile] = []
        if self._in_order:
            while self._started and self._started[0][0].done():
                results += self._started.popleft()[0].result()
            return results
        for _ in range(len(self._started)):
            future, count = self._started.popleft()
            if future.done():
                results += future.result()
            else:
                self._started.append((future, count))
        return results

    def _has_room(self) -> bool:
        """Whether another group may be started."""
        running = sum(count for future, count in self._started if not future.done())
        held = sum(count for _, count in self._started)
        return (
            running + self._size.images <= self._concurrency
            and held + self._size.images <= AHEAD * self._concurrency
        )

    def cancel(self) -> list[F]:
        """Cancel all groups in the window, and return them."""
        for future, _ in self._started:
            future.cancel()
        return [future for future, _ in self._started]
