"""Files on the command line: which pictures they are, how they are shown, and the bar that counts them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from serve_app.console import SafeConsole, progress
from serve_app.errors import InvalidRequest
from serve_app.picture_files import SUFFIXES, pictures_in

PROGRESS_FROM = 3
"""Fewer pictures than this are done before a progress bar can be read."""


def expand(photos: Sequence[Path]) -> list[Path]:
    """Return the pictures that some paths name: themselves, or those in a folder.

    Raises:
        InvalidRequest: A path is not there, or there are no pictures.
    """
    files: list[Path] = []
    for path in photos:
        if path.is_dir():
            files += pictures_in(path)
        elif path.is_file():
            files.append(path)
        else:
            raise InvalidRequest(f"{path} is not there.")
    if not files:
        raise InvalidRequest(f"no pictures in {', '.join(str(path) for path in photos)}; read are {', '.join(SUFFIXES)}")
    return files


def shown(path: Path) -> str:
    """Return a path as text that can be printed and stored, also where its bytes are no Unicode."""
    return str(path).encode(errors="backslashreplace").decode()


@contextmanager
def progress_bar(total: int, description: str) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error; what is given advances it by so many."""
    console = SafeConsole(stderr=True)
    # where it is no terminal rich would leave an empty line behind
    hidden = total < PROGRESS_FROM or not console.is_terminal
    with progress(console, disable=hidden) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.advance(task, done)
