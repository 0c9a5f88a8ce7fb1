"""Pictures as callers have them: a path, bytes or an open file.

They are sent as they are and decoded by the service.
"""

import os
from pathlib import Path
from typing import BinaryIO

from serve_app.errors import InvalidImage, SourceUnavailable
from serve_app.untrusted.bounded_files import FileProblem, read_regular

Image = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
"""A path, the bytes of a picture file, or a file object open for reading bytes."""
MAX_IMAGE_BYTES = 256 * 2**20
"""Bytes of one file that are read at all; the service has a lower limit of its own."""


def read_image(image: Image) -> bytes:
    """Return the bytes of a picture.

    Raises:
        SourceUnavailable: The file cannot be read.
        InvalidImage: There are no bytes.
        TypeError: It is something else, such as a decoded picture or a file open as text.
    """
    try:
        data = _bytes_of(image)
    except FileProblem as error:
        raise SourceUnavailable(error.message) from error
    except OSError as error:
        raise SourceUnavailable(
            f"The image cannot be read: {error.strerror or type(error).__name__}."
        ) from error
    if not data:
        raise InvalidImage("The picture is empty.")
    return data


def _bytes_of(image: Image) -> bytes:
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return read_regular(Path(image), MAX_IMAGE_BYTES)
    data = image.read() if hasattr(image, "read") else None
    if not isinstance(data, bytes):
        raise TypeError(
            "a picture is a path, bytes or a file open for reading bytes, not "
            f"{type(image).__name__}"
        )
    return data
