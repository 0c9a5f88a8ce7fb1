"""Arguments that several commands share, and what they mean."""

import argparse
from pathlib import Path

from serve_app.config.service import ServiceConfig, load_config
from serve_app.demo.settings import demo_config

START_TIMEOUT_S = 600.0
"""Seconds after which a service that is still loading counts as failed."""


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--config`, which is optional."""
    parser.add_argument(
        "--config", type=Path, help="the configuration; default: that of the embedded demo"
    )


def config_of(args: argparse.Namespace) -> ServiceConfig:
    """Return the configuration of `--config`, or the demo's without it.

    Raises:
        ConfigError: The file cannot be read or is not valid.
    """
    return load_config(args.config) if args.config else demo_config()


def add_labels_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--labels`, a text with commas."""
    parser.add_argument(
        "--labels", help="labels to score instead of the configuration's, separated by commas"
    )


def labels_of(args: argparse.Namespace) -> tuple[str, ...] | None:
    """Return the labels of `--labels`, or None without it."""
    if not args.labels:
        return None
    labels = (label.strip() for label in args.labels.split(","))
    return tuple(label for label in labels if label)


def add_vocabulary_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--vocabulary`, the name of one of the configuration's vocabularies."""
    parser.add_argument(
        "--vocabulary", help="a vocabulary of the configuration; default: its default one"
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
        help="high: also look at overlapping tiles",
    )
