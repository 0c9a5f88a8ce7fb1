"""Files on the command line: which pictures they are, how they are shown, and the bar that counts
them.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from serve_app.errors import InvalidRequest
from serve_app.terminal.console import error_console, progress
from serve_app.untrusted.image_files import SUFFIXES, images_in

PROGRESS_FROM = 3
"""Fewer pictures than this are done before a progress bar can be read."""


def expand(photos: Sequence[Path]) -> list[Path]:
    """Return the pictures that some paths name: themselves, whatever their suffix, or those in a
    folder.

    A path that is not there is returned if others are: reading it gives an error of its own.

    Raises:
        InvalidRequest: No path is there, or there are no pictures.
    """
    if not any(os.path.exists(path) for path in photos):
        raise InvalidRequest(
            f"{', '.join(map(shown, photos))} {'are' if len(photos) > 1 else 'is'} not there."
        )
    files: list[Path] = []
    for path in photos:
        files += images_in(path) if os.path.isdir(path) else [path]
    if not files:
        raise InvalidRequest(
            f"no pictures in {', '.join(map(shown, photos))}; read are {', '.join(SUFFIXES)}"
        )
    return files


def shown(path: Path) -> str:
    """Return a path as text that can be printed and stored, also where its bytes are no Unicode."""
    return str(path).encode(errors="backslashreplace").decode()


@contextmanager
def progress_bar(total: int, description: str) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error; what is given advances it by so many."""
    console = error_console()
    # where it is no terminal rich would leave an empty line behind
    hidden = total < PROGRESS_FROM or not console.is_terminal
    with progress(console, disable=hidden) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.advance(task, done)
