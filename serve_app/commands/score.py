"""`siglip-serve score`: tags for embeddings that were stored, without pixels and without the vision
tower.
"""

from pathlib import Path

from serve_app.commands.json_lines import json_line
from serve_app.commands.stored import read_embeddings
from serve_app.config.service import ServiceConfig
from serve_app.errors import InvalidRequest
from serve_app.pipeline.local_scorer import LocalScorer
from serve_app.tagging.options import TagOptions
from serve_app.terminal.printable import print_line

CHUNK = 1024


def score_file(path: Path, config: ServiceConfig, options: TagOptions) -> int:
    """Print the tags of stored embeddings, one JSON object a line.

    Raises:
        ConfigError: The checkpoint or a setting cannot work.
        InvalidRequest: The file cannot be read, or its embeddings are another checkpoint's.
    """
    stored = read_embeddings(path)
    scorer = LocalScorer(config)
    if stored.checkpoint not in (None, scorer.fingerprint):
        raise InvalidRequest(
            f"{path} was made with the checkpoint {stored.checkpoint}, and the configuration's is {scorer.fingerprint}; embeddings of "
            "different checkpoints cannot be compared."
        )
    scoring = scorer.scoring_for(options)
    for start in range(0, len(stored.names), CHUNK):
        tags = scoring.tag(stored.image_embeds[start : start + CHUNK])
        for name, found in zip(stored.names[start : start + CHUNK], tags, strict=True):
            print_line(json_line(name, found, scoring.by.include_raw_scores))
    return 0
