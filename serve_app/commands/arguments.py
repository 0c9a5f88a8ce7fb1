"""Arguments that several commands share, and the values that they result in."""

import argparse
from pathlib import Path

from serve_app.config.service import ServiceConfig, load_config
from serve_app.demo.settings import demo_config

START_TIMEOUT_S = 600.0
"""Maximum time for a service to load; after it, the start counts as failed."""


def add_flag(parser: argparse._ActionsContainer, name: str, description: str) -> None:
    """Add an option without a value, such as `--json`."""
    parser.add_argument(name, action="store_true", help=description)


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--config`, which is optional."""
    parser.add_argument(
        "--config",
        type=Path,
        help="the configuration; default: the configuration of the embedded demo",
    )


def config_of(args: argparse.Namespace) -> ServiceConfig:
    """Return the configuration of `--config`; default: the configuration of the demo.

    Raises:
        ConfigError: The file cannot be read or is not valid.
    """
    return load_config(args.config) if args.config else demo_config()


def add_labels_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--labels`, a comma-separated list."""
    parser.add_argument(
        "--labels", help="comma-separated labels to use instead of the configuration's"
    )


def labels_of(args: argparse.Namespace) -> tuple[str, ...] | None:
    """Return the labels of `--labels`; None if there are none."""
    if not args.labels:
        return None
    labels = (label.strip() for label in args.labels.split(","))
    return tuple(label for label in labels if label)


def add_vocabulary_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--vocabulary`, the name of one of the configuration's vocabularies."""
    parser.add_argument(
        "--vocabulary", help="a vocabulary of the configuration; default: its default vocabulary"
    )


def add_threshold_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--threshold`."""
    parser.add_argument("--threshold", type=float, help="minimum confidence of a tag")


def add_quality_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--quality`."""
    parser.add_argument(
        "--quality",
        choices=("standard", "high"),
        default="standard",
        help="high: also encode overlapping tiles of each image",
    )
