"""`siglip-serve render`: prints the Serve config of one or several configurations."""

import argparse
from pathlib import Path

from serve_app.config.service import load_config
from serve_app.graph.serve_config import serve_config_text
from serve_app.terminal.printable import print_block


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `render`."""
    parser.add_argument("config", type=Path, nargs="+")


def run(args: argparse.Namespace) -> int:
    """Print the Serve config.

    Raises:
        ConfigError: A configuration is not valid, or several cannot run side by side.
    """
    print_block(serve_config_text(*[load_config(path) for path in args.config]))
    return 0
