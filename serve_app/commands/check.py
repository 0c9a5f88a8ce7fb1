"""`siglip-serve check`: validates a configuration, and its labels against the checkpoint."""

import argparse
from pathlib import Path

from serve_app.commands.label_problems import label_problems
from serve_app.config.service import ServiceConfig, load_config
from serve_app.errors import ConfigError
from serve_app.siglip.hub import is_here
from serve_app.terminal.printable import print_line

NOT_CHECKED = (
    "; the labels were not checked against the checkpoint, because it is not on this machine"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `check`."""
    parser.add_argument("config", type=Path)


def run(args: argparse.Namespace) -> int:
    """Check a configuration, and print the number of its tags.

    Raises:
        ConfigError: The configuration is not valid; the message has one line for each problem.
    """
    config = load_config(args.config)
    unchecked = _check_labels(config)
    sizes = ", ".join(
        f"{len(registered.vocabulary.tags):,} tags in {name}"
        for name, registered in config.vocabularies.items()
    )
    print_line(f"{args.config} is valid: {config.siglip.model}, {sizes}{unchecked}")
    return 0


def _check_labels(config: ServiceConfig) -> str:
    """Check the labels, and return a note if the checkpoint is not on this machine."""
    if not is_here(config.siglip.model_source, config.revision):
        return NOT_CHECKED
    if lines := label_problems(config):
        raise ConfigError("\n".join(lines))
    return ""
