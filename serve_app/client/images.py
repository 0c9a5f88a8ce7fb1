"""Reads the images that callers pass: a path, bytes or an open file.

The client sends the bytes unchanged; the service decodes them.
"""

import os
from pathlib import Path
from typing import BinaryIO

from serve_app.errors import InvalidImage, SourceUnavailable
from serve_app.untrusted.bounded_files import FileProblem, read_regular

Image = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
"""A path, the bytes of an image file, or a file object that is open in binary mode."""
MAX_IMAGE_BYTES = 256 * 2**20
"""Maximum size of a file that the client reads; the service has its own, lower limit."""


def read_image(image: Image) -> bytes:
    """Return the bytes of an image.

    Raises:
        SourceUnavailable: The file cannot be read.
        InvalidImage: The image is empty.
        TypeError: The value has another type, such as a decoded image or a file in text mode.
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
        raise InvalidImage("The image is empty.")
    return data


def _bytes_of(image: Image) -> bytes:
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return read_regular(Path(image), MAX_IMAGE_BYTES)
    data = image.read() if hasattr(image, "read") else None
    if not isinstance(data, bytes):
        raise TypeError(
            "an image must be a path, bytes or a file open in binary mode, not "
            f"{type(image).__name__}"
        )
    return data
