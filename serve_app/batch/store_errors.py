"""What a store reports when something goes wrong, and what that means for the job."""

import contextlib
from collections.abc import Iterator

from serve_app.batch.local_files import NotAFile
from serve_app.batch.urls import shown_url
from serve_app.errors import ConfigError

OF_ONE_OBJECT = ("NotFoundError", "PermissionDeniedError", "InvalidPathError")
"""Names of obstore's errors that concern one object; after others the store does not respond."""
REASONS = {
    "PermissionDeniedError": "access is denied",
    "PermissionError": "access is denied",
    "UnauthenticatedError": "the credentials are not accepted",
    "FileNotFoundError": "it is not there",
    "NotFoundError": "it is not there",
    "IsADirectoryError": "it is a folder",
}
"""Reasons by the names of errors, of Python and of obstore."""


class ObjectUnreadable(ConfigError):
    """One object cannot be read; others may still be readable."""


class StoreFailed(OSError):
    """The store did not respond while a file was read; the file may be intact."""


@contextlib.contextmanager
def failing_to_be(done: str, url: str) -> Iterator[None]:
    """Turn every error of a block into one sentence.

    Args:
        done: What the object was to be, such as `written`.
        url: URL of the object.

    Raises:
        ConfigError: The block raised an error.
    """
    try:
        yield
    except Exception as error:
        raise ConfigError(f"{shown_url(url)} cannot be {done}: {why(error)}.") from error


def concerns_one_object(error: Exception) -> bool:
    """Return whether an error of a bucket concerns one object only."""
    return isinstance(error, FileNotFoundError) or type(error).__name__ in OF_ONE_OBJECT


def why(error: Exception) -> str:
    """Return in a few words what a store reported, without its debug output."""
    if isinstance(error, ConfigError):
        return str(error).rstrip(".")
    if reason := _why_not_a_name(error):
        return reason
    name = type(error).__name__
    if name in REASONS:
        return REASONS[name]
    if isinstance(error, OSError) and _is_from_the_system(error):
        return str(error.strerror or error)
    lines = str(error).strip().splitlines()
    return f"{name}, {lines[0][:200] if lines else 'without a reason'}".rstrip(".")


def _why_not_a_name(error: Exception) -> str | None:
    """Return why a name was refused before the system or the store was called.

    Other errors give None.
    """
    text = str(error)
    if not isinstance(error, ValueError):
        return None
    if text.startswith("embedded null") or "\0" in text:  # Python's message, obstore's message
        return "its name contains a null character"
    if text.startswith("Could not parse path"):
        return "its key has an empty part, a part that is . or .., or a control character"
    return None


def _is_from_the_system(error: OSError) -> bool:
    """Return whether an error comes from the system or `local_files.py`, not from obstore."""
    return error.strerror is not None or isinstance(error, NotAFile) or type(error) is OSError
