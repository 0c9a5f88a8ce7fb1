"""`siglip-serve fetch`: downloads a checkpoint in advance, for an offline service."""

import argparse
from pathlib import Path

from serve_app.config.service import parse_config
from serve_app.siglip.hub import load_checkpoint
from serve_app.terminal.printable import print_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fetch`."""
    parser.add_argument(
        "model", help="a Hugging Face model ID, a short name such as so400m-v2, or a folder"
    )
    parser.add_argument("--revision", help="branch, tag or commit; default: the main branch")


def run(args: argparse.Namespace) -> int:
    """Download a checkpoint if it is missing, check it, and print its folder and commit.

    Raises:
        ConfigError: The checkpoint does not exist or cannot be downloaded.
    """
    settings = {"labels": ["image"], "plugins": {"siglip": {"model": args.model}}}
    plugin = parse_config(settings).siglip
    checkpoint = load_checkpoint(plugin.model_source, args.revision)
    print_line(f"{plugin.model_shown} is in {checkpoint.folder}")

    # a folder in the hub's cache is named by its commit; a folder of the user is not
    if not Path(plugin.model_source).expanduser().is_dir():
        print_line(f"revision: {checkpoint.folder.name}")
    return 0
