"""Reads the JSON objects of a checkpoint folder."""

from pathlib import Path
from typing import Any

from serve_app.errors import ConfigError
from serve_app.untrusted import bounded_files
from serve_app.untrusted.bounded_files import FileMissing


def read_json(path: Path, why: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        why: What the file is needed for; it ends the message about a missing file.

    Raises:
        ConfigError: The file is missing, too large, nested too deeply, or not a JSON object.
    """
    try:
        content = bounded_files.read_json(path)
    except FileMissing as error:
        raise ConfigError(f"{path} is missing; {why}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a JSON object.")
    return content
