"""`siglip-serve env`: prints the environment variables that every Ray node needs."""

import argparse

from serve_app.graph.profiles import node_environment
from serve_app.terminal.printable import print_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `env`."""
    parser.add_argument("--ingress", choices=("auto", "haproxy", "python"), default="auto")


def run(args: argparse.Namespace) -> int:
    """Print one `NAME=VALUE` per line."""
    for name, value in node_environment(args.ingress).items():
        print_line(f"{name}={value}")
    return 0
