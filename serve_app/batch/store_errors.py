"""What a store says when something goes wrong, and what follows from it."""

from serve_app.batch.local_files import NotAFile
from serve_app.errors import ConfigError

OF_ONE_OBJECT = ("NotFoundError", "PermissionDeniedError", "InvalidPathError")
"""Names of obstore's errors that concern one object; the others say that the store does not
answer."""


class ObjectUnreadable(ConfigError):
    """One object cannot be read; others may still be readable."""


class StoreFailed(OSError):
    """The store did not respond while a file was read; the file may be intact."""


def concerns_one_object(error: Exception) -> bool:
    """Return whether an error of a bucket concerns one object, and the store is fine."""
    return isinstance(error, FileNotFoundError) or type(error).__name__ in OF_ONE_OBJECT


def why(error: Exception) -> str:
    """Return in a few words what a store said, without its debug output."""
    if isinstance(error, ConfigError):
        return str(error).rstrip(".")
    kinds = {
        "PermissionDeniedError": "access is denied",
        "PermissionError": "access is denied",
        "UnauthenticatedError": "the credentials are not accepted",
        "FileNotFoundError": "it is not there",
        "NotFoundError": "it is not there",
        "IsADirectoryError": "it is a folder",
    }
    if reason := _why_not_a_name(error):
        return reason
    name = type(error).__name__
    if name in kinds:
        return kinds[name]
    if isinstance(error, OSError) and _is_from_the_system(error):
        return str(error.strerror or error)
    said = str(error).strip().splitlines()
    return f"{name}, {said[0][:200] if said else 'without a reason'}".rstrip(".")


def _why_not_a_name(error: Exception) -> str | None:
    """Return why a name was refused before the system or the store was asked; None for other
    errors.
    """
    said = str(error)
    if not isinstance(error, ValueError):
        return None
    if said.startswith("embedded null") or "\0" in said:  # of Python, of obstore
        return "its name contains a null character"
    if said.startswith("Could not parse path"):
        return "its key has an empty part, a part that is . or .., or a control character"
    return None


def _is_from_the_system(error: OSError) -> bool:
    """Return whether an error comes from the operating system or `local_files.py`, not from
    obstore.
    """
    return error.strerror is not None or isinstance(error, NotAFile) or type(error) is OSError
