"""Folders of the user that runs this: the home folder, and the cache of what can be computed again.

Not here: the cache of downloaded checkpoints, which is the Hugging Face libraries' (`hub.py`).
"""

import os
import stat
import tempfile
from pathlib import Path

from serve_app.errors import ConfigError

NAME = "siglip-serve"


def expand_user(path: str) -> Path:
    """Return a path with `~` replaced by the home folder.

    Raises:
        ConfigError: There is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{path} begins with a home folder that is not known; write the whole path, or set HOME."
        ) from error


def cache_root() -> Path:
    """Return this user's cache folder: below `XDG_CACHE_HOME`, which is `~/.cache` unless set.

    A user id without a home folder, as containers are run under, has a folder of its own below the
    temporary one.

    Raises:
        ConfigError: There is no home folder, and the folder below the temporary one is another
            user's.
    """
    configured = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(configured or "~/.cache").expanduser() / NAME
    except RuntimeError:  # HOME is not set, and the user id is not in the system's list of users
        return _temporary_root()


def _temporary_root() -> Path:
    root = Path(tempfile.gettempdir()) / f"{NAME}-{os.getuid()}"
    advice = "set XDG_CACHE_HOME to a folder that this user can write to"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        found = root.lstat()
    except OSError as error:
        raise ConfigError(
            f"user {os.getuid()} has no home folder, and {root} cannot be made; {advice}."
        ) from error
    # other users can make entries below the temporary folder, too
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ConfigError(
            f"user {os.getuid()} has no home folder, and {root} belongs to somebody else; {advice}."
        )
    return root
