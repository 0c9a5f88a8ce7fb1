"""What a store says when something goes wrong, and what follows from it."""

from serve_app.batch.local_files import NotAFile
from serve_app.errors import ConfigError

OF_ONE_OBJECT = ("NotFoundError", "PermissionDeniedError", "InvalidPathError")
"""Names of obstore's errors that concern one object; the others say that the store does not answer."""


class ObjectUnreadable(ConfigError):
    """One object cannot be read, which says nothing of the others."""


class StoreFailed(OSError):
    """The store did not answer while a file was read, which says nothing of the file."""


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
    name = type(error).__name__
    if name in kinds:
        return kinds[name]
    if isinstance(error, OSError) and _is_from_the_system(error):
        return str(error.strerror or error)
    said = str(error).strip().splitlines()
    return f"{name}, {said[0][:200] if said else 'without a reason'}".rstrip(".")


def _is_from_the_system(error: OSError) -> bool:
    """Return whether an error comes from the operating system or `local_files.py`, not from obstore."""
    return error.strerror is not None or isinstance(error, NotAFile) or type(error) is OSError
