"""`siglip-serve key`: an API key for somebody."""

import sys

from serve_app.api.keys import make_key
from serve_app.terminal.printable import print_line


def new_key(name: str) -> int:
    """Print a key on standard output, and what to do with it beside it.

    Raises:
        ConfigError: The name cannot be one.
    """
    made = make_key(name)
    print_line(f"Give this key to {name}; it is shown only now:", file=sys.stderr)
    print_line(made.key, flush=True)
    print_line(
        "Add this line to the file of access.api_keys; a running service takes it within seconds:",
        file=sys.stderr,
    )
    print_line(made.line, file=sys.stderr)
    return 0
