"""`siglip-serve key`: creates an API key for a client."""

import argparse
import sys

from serve_app.api.keys import make_key
from serve_app.terminal.printable import print_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `key`."""
    parser.add_argument("name", help="the client's name, which appears in logs")


def run(args: argparse.Namespace) -> int:
    """Print a new key on standard output, and instructions on standard error.

    Raises:
        ConfigError: The name is not valid.
    """
    made = make_key(args.name)
    print_line(f"Give this key to {args.name}; it is shown only now:", file=sys.stderr)
    print_line(made.key, flush=True)
    print_line(
        "Add this line to the file that access.api_keys names; a running service reloads it within "
        "seconds:",
        file=sys.stderr,
    )
    print_line(made.line, file=sys.stderr)
    return 0
