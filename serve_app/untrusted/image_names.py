"""Finds the images of a folder by their names, and skips hidden files and system files.

Every command, the client and batch jobs use these rules, so all of them find the same images in a
folder. The rules apply only to the content of folders: a file that is named explicitly is always
used.
"""

import errno
import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from serve_app.errors import ConfigError

logger = logging.getLogger(__name__)

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".mpo"),
    *(".png", ".apng"),
    *(".webp", ".gif", ".bmp"),
    *(".tif", ".tiff"),
    *(".avif", ".avifs"),
    *(".heic", ".heif", ".hif", ".heics", ".heifs"),
)
"""Suffixes of the supported formats, in lower case. Source: the registered extensions of Pillow and
pillow-heif, and additional names that browsers give to JPEG files."""

LITTER = frozenset(
    {
        *("__macosx", "network trash folder", "temporary items", "icon\r"),  # macOS
        *("thumbs.db", "ehthumbs.db", "desktop.ini"),  # Windows
        *("$recycle.bin", "recycler", "system volume information"),
        *("@eadir", "#recycle", "#snapshot"),  # Synology
        *("@recycle", "@recently-snapshot", "@__thumb"),  # QNAP
        "lost+found",
    }
)
"""Names, in lower case, of files and folders that operating systems create among a user's files.
Names that begin with a dot are also skipped."""
MAX_SHOWN = 3
"""Maximum number of examples in a message."""
MAX_SHOWN_CHARS = 200
"""Maximum length of one example."""
_SKIPPED_ERRORS = (
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)
"""Errors of an entry that is not accessible, which is skipped. Other errors, such as ESTALE, EIO
and ETIMEDOUT, come from the disk or network share; skipping the entry would hide existing files."""
_BROKEN_LINK_ERRORS = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""Errors of a link whose target does not exist, or that is part of a loop."""


@dataclass(slots=True)
class Examples:
    """The number of entries, and the first few of them.

    Attributes:
        count: Number of entries.
        shown: The first entries, at most `MAX_SHOWN`.
    """

    count: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Count one entry."""
        self.count += 1
        if len(self.shown) < MAX_SHOWN:
            self.shown.append(text)


@dataclass(slots=True)
class Skipped:
    """Counts the skipped content of a folder or bucket.

    Attributes:
        hidden: Hidden files and folders, and system files; a folder counts once.
        suffixes: Files of other types, by suffix.
        links: Links to folders, which are not followed: they may form loops or leave the folder.
        special: Pipes, sockets, devices, and broken links.
        unreadable: Folders and files that are not accessible, with the reason.
        keys: Objects of a bucket whose keys cannot be requested, such as `a//b`.
    """

    hidden: int = 0
    suffixes: Counter[str] = field(default_factory=Counter)
    links: int = 0
    special: int = 0
    unreadable: Examples = field(default_factory=Examples)
    keys: Examples = field(default_factory=Examples)

    def add_other(self, name: str) -> None:
        """Count a file of another type."""
        self.suffixes[os.path.splitext(name)[1].lower() or "no suffix"] += 1

    def summary(self) -> str:
        """Return what was skipped as one phrase; empty if nothing was skipped."""
        suffixes = [suffix for suffix, _ in self.suffixes.most_common(MAX_SHOWN)]
        counts = [
            (self.hidden, "hidden or system files and folders", []),
            (self.suffixes.total(), "files of other types", suffixes),
            (self.links, "links to folders", []),
            (self.special, "pipes, sockets, devices and broken links", []),
            (self.unreadable.count, "unreadable files and folders", self.unreadable.shown),
            (self.keys.count, "objects with an unusable key", self.keys.shown),
        ]
        phrases = [f"{name}: {count:,}{_examples(shown)}" for count, name, shown in counts if count]
        return "; ".join(phrases)

    def report(self, where: str) -> None:
        """Log what was skipped, if anything was."""
        if summary := self.summary():
            logger.warning("%s: skipped %s", _printable(where), summary)


def is_image(name: str) -> bool:
    """Return whether a name has the suffix of an image."""
    return name.lower().endswith(SUFFIXES)


def is_litter(path: str) -> bool:
    """Return whether a relative path is hidden or a system file, or is in such a folder."""
    return any(_is_litter_name(name) for name in path.split("/"))


def images_in(folder: Path) -> list[Path]:
    """Return the sorted images of a folder and its subfolders, and log what is skipped.

    If the folder itself cannot be read, it is logged like an unreadable subfolder.

    Raises:
        ConfigError: See `files_below`.
    """
    skipped = Skipped()
    found: list[Path] = []
    for path, _ in files_below(os.fspath(folder), skipped):
        if is_image(path):
            found.append(Path(path))
        else:
            skipped.add_other(path)
    skipped.report(os.fspath(folder))
    return sorted(found)


def files_below(
    folder: str, skipped: Skipped, with_litter: bool = False
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the path and status of every regular file below a folder, in no particular order.

    Links to files are followed, but links to folders are not. Entries that are not accessible are
    skipped.

    Args:
        folder: The folder; a link is followed.
        skipped: Counts the skipped entries.
        with_litter: Whether to yield hidden files and system files too.

    Raises:
        ConfigError: The disk or network share failed, so an unknown number of files is missing.
    """
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(here) as listed:
                entries = list(listed)
        except OSError as error:
            if here == folder or not _is_deleted(error):
                _count_unreadable(here, error, skipped)
            continue
        for entry in entries:
            if not with_litter and _is_litter_name(entry.name):
                skipped.hidden += 1
                continue
            status = _status(entry, skipped)
            if status is None:
                continue
            if stat.S_ISREG(status.st_mode):
                yield entry.path, status
            elif not stat.S_ISDIR(status.st_mode):
                skipped.special += 1
            elif entry.is_symlink():
                skipped.links += 1
            else:
                waiting.append(entry.path)


def _status(entry: "os.DirEntry[str]", skipped: Skipped) -> os.stat_result | None:
    """Return the status of an entry or its link target; on errors, count it and return None."""
    try:
        return entry.stat()
    except OSError as error:
        if entry.is_symlink() and error.errno in _BROKEN_LINK_ERRORS:
            skipped.special += 1
        elif not _is_deleted(error):
            _count_unreadable(entry.path, error, skipped)
        return None


def _is_deleted(error: OSError) -> bool:
    """Return whether an entry was deleted after its folder had been listed."""
    return error.errno == errno.ENOENT


def _count_unreadable(path: str, error: OSError, skipped: Skipped) -> None:
    """Count an entry that is not accessible.

    Raises:
        ConfigError: The disk or network share failed.
    """
    if error.errno not in _SKIPPED_ERRORS:
        reason = _printable(_with_reason(path, error))
        raise ConfigError(f"{reason}. Check the disk or network share, then retry.") from error
    skipped.unreadable.add(_with_reason(path, error))


def _is_litter_name(name: str) -> bool:
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in LITTER


def _with_reason(path: str, error: OSError) -> str:
    shown = path if len(path) <= MAX_SHOWN_CHARS else f"{path[:MAX_SHOWN_CHARS]}…"
    return f"{shown}: {error.strerror or type(error).__name__}"


def _examples(shown: list[str]) -> str:
    return f" ({', '.join(map(_printable, shown))})" if shown else ""


def _printable(text: str) -> str:
    """Return text with hidden characters escaped, because a log line may go to a terminal."""
    return text if text.isprintable() else ascii(text)[1:-1]
