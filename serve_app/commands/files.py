"""Image files on the command line: lists them, prints their names, and shows a progress bar."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from serve_app.errors import InvalidRequest
from serve_app.terminal.console import error_console, progress
from serve_app.untrusted.image_names import SUFFIXES, images_in

PROGRESS_FROM = 3
"""Minimum number of images for a progress bar; fewer are done before it can be read."""


def expand(paths: Sequence[Path]) -> list[Path]:
    """Return the image files that paths name, with each folder replaced by the images in it.

    A file that is named explicitly is returned whatever its suffix. A path that does not exist is
    returned as long as another one exists; reading it fails later, with an error of its own.

    Raises:
        InvalidRequest: None of the paths exists, or there are no images.
    """
    names = ", ".join(map(printable_path, paths))
    if not any(os.path.exists(path) for path in paths):
        raise InvalidRequest(f"{names} {'do' if len(paths) > 1 else 'does'} not exist.")

    files: list[Path] = []
    for path in paths:
        files += images_in(path) if os.path.isdir(path) else [path]
    if not files:
        raise InvalidRequest(f"no images in {names}; supported suffixes are {', '.join(SUFFIXES)}")
    return files


def printable_path(path: Path) -> str:
    """Return a path as text for output and files; bytes that are not Unicode are escaped."""
    return str(path).encode(errors="backslashreplace").decode()


@contextmanager
def progress_bar(total: int, description: str) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error, and yield a function that advances it by a number."""
    console = error_console()
    # rich would leave an empty line behind if standard error is not a terminal
    hidden = total < PROGRESS_FROM or not console.is_terminal
    with progress(console, disable=hidden) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.advance(task, done)
