"""`siglip-serve check`: whether a configuration is valid, and whether its checkpoint knows it."""

import argparse
from pathlib import Path

from serve_app.commands.label_problems import label_problems
from serve_app.config.service import ServiceConfig, load_config
from serve_app.errors import ConfigError
from serve_app.siglip.hub import is_here
from serve_app.terminal.printable import print_line

NOT_CHECKED = (
    "; the checkpoint is not here, so whether it can tell the labels apart and read all of them "
    "was not checked"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `check`."""
    parser.add_argument("config", type=Path)


def run(args: argparse.Namespace) -> int:
    """Check a configuration and print its size.

    Raises:
        ConfigError: It is not valid; one line for each problem.
    """
    config = load_config(args.config)
    unchecked = _check_labels(config)
    sizes = ", ".join(
        f"{len(registered.vocabulary.tags):,} tags in {name}"
        for name, registered in config.vocabularies.items()
    )
    print_line(f"{args.config} is fine: {config.siglip.model}, {sizes}{unchecked}")
    return 0


def _check_labels(config: ServiceConfig) -> str:
    """Check labels against the checkpoint, and return a note if it is not on this machine."""
    if not is_here(config.siglip.model_source, config.revision):
        return NOT_CHECKED
    if lines := label_problems(config):
        raise ConfigError("\n".join(lines))
    return ""
