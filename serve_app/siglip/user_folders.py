"""The user's folders: the home folder, and the cache of files that can be computed again.

Not here: the cache of downloaded checkpoints, which the Hugging Face libraries manage (`hub.py`).
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
        ConfigError: The home folder does not exist.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{path} begins with an unknown home folder; write the whole path, or set HOME."
        ) from error


def cache_root() -> Path:
    """Return this user's cache folder: below `XDG_CACHE_HOME`, which is `~/.cache` unless set.

    A user without a home folder, such as the user of a container, has a folder below the temporary
    folder.

    Raises:
        ConfigError: There is no home folder, and the folder below the temporary folder belongs to
            another user.
    """
    configured = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(configured or "~/.cache").expanduser() / NAME
    except RuntimeError:  # HOME is not set, and the system's list of users lacks the user id.
        return _temporary_root()


def _temporary_root() -> Path:
    root = Path(tempfile.gettempdir()) / f"{NAME}-{os.getuid()}"
    advice = "set XDG_CACHE_HOME to a folder that this user can write to"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        found = root.lstat()
    except OSError as error:
        raise ConfigError(
            f"user {os.getuid()} has no home folder, and {root} cannot be created; {advice}."
        ) from error
    # Other users can create files below the temporary folder, too.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ConfigError(
            f"user {os.getuid()} has no home folder, and {root} belongs to another user; {advice}."
        )
    return root
