"""Reads the API key that a command sends to a running service."""

import argparse
from pathlib import Path

from serve_app.errors import ConfigError
from serve_app.untrusted.bounded_files import FileProblem, read_text

MAX_KEY_BYTES = 4096
"""Maximum size of a file that holds one key."""


def add_api_key_argument(parser: argparse._ActionsContainer) -> None:
    """Add `--api-key-file`."""
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="a file with the service's API key; default: the environment variable SIGLIP_API_KEY",
    )


def read_api_key(file: Path | None) -> str | None:
    """Return the key in a file; None if there is no file.

    The client then reads the environment variable `SIGLIP_API_KEY`.

    Raises:
        ConfigError: The file cannot be read.
    """
    if file is None:
        return None
    try:
        return read_text(file, MAX_KEY_BYTES).strip()
    except FileProblem as error:
        raise ConfigError(f"the API key cannot be read from {file}: {error}") from error
