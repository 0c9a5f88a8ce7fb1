"""`siglip-serve score`: tags stored embeddings, without pixels and without the vision tower."""

import argparse
from pathlib import Path

from serve_app.commands.arguments import (
    add_config_argument,
    add_labels_argument,
    add_threshold_argument,
    add_vocabulary_argument,
    config_of,
    labels_of,
)
from serve_app.commands.embeddings_file import read_embeddings
from serve_app.commands.json_lines import json_line
from serve_app.config.service import ServiceConfig
from serve_app.errors import InvalidRequest
from serve_app.pipeline.local_scorer import LocalScorer
from serve_app.tagging.options import TagOptions, tag_options
from serve_app.terminal.printable import print_line

EMBEDDINGS_PER_CALL = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `score`."""
    parser.add_argument("embeddings", type=Path, help="a file of `tag --save-embeddings`, or .npy")
    add_labels_argument(parser)
    add_vocabulary_argument(parser)
    add_threshold_argument(parser)
    add_config_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Score the embeddings of a file; see `score_file`."""
    options = tag_options(
        labels=labels_of(args),
        vocabulary=args.vocabulary,
        confidence_threshold=args.threshold,
    )
    return score_file(args.embeddings, config_of(args), options)


def score_file(path: Path, config: ServiceConfig, options: TagOptions) -> int:
    """Print the tags of stored embeddings, one JSON object per line.

    Raises:
        ConfigError: The checkpoint or a setting is not usable.
        InvalidRequest: The file cannot be read, or its embeddings are from another checkpoint.
    """
    stored = read_embeddings(path)
    scorer = LocalScorer(config)
    if stored.checkpoint not in (None, scorer.fingerprint):
        raise InvalidRequest(
            f"{path} was encoded with the checkpoint {stored.checkpoint}, but the configuration "
            f"uses {scorer.fingerprint}; embeddings of different checkpoints cannot be compared."
        )
    scoring = scorer.scoring_for(options)
    for start in range(0, len(stored.names), EMBEDDINGS_PER_CALL):
        end = start + EMBEDDINGS_PER_CALL
        tags = scoring.tag(stored.image_embeds[start:end])
        for name, image_tags in zip(stored.names[start:end], tags, strict=True):
            print_line(json_line(name, image_tags, scoring.by.include_raw_scores))
    return 0
