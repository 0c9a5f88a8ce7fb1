"""Tags images in this process, and prints their tags as a table or as JSON lines."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from serve_app.commands.embeddings_file import StoredEmbeddings, write_embeddings
from serve_app.commands.encoding import in_chunks, load_tagger, read_chunk
from serve_app.commands.files import expand, printable_path
from serve_app.commands.json_lines import json_line
from serve_app.commands.tags_table import print_table
from serve_app.config.service import ServiceConfig
from serve_app.errors import TaggerError
from serve_app.pipeline.bounded_tags import TagOutcome
from serve_app.pipeline.tagged_image import TaggedImage
from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.options import TagOptions
from serve_app.terminal.printable import print_line

if TYPE_CHECKING:
    from serve_app.pipeline.local_tagger import LocalTagger


def tag_files(
    photos: Sequence[Path],
    config: ServiceConfig,
    options: TagOptions,
    as_json: bool,
    embeddings: Path | None = None,
) -> int:
    """Tag files and print their tags; return 1 if one of them could not be tagged, else 0.

    Args:
        photos: Images, and folders of images.
        config: The configuration.
        options: How to score and select tags.
        as_json: Whether to print JSON lines instead of a table.
        embeddings: File for the embeddings, which `siglip-serve score` reads.

    Raises:
        ConfigError: The checkpoint or a setting is not usable.
        InvalidRequest: None of the paths exists, or an option is not valid.
    """
    files = expand(photos)
    tagger = load_tagger(config)
    raw_scores = tagger.settings.shows_raw_scores(options)
    outcomes: dict[Path, TagOutcome] = {}
    embeds: dict[str, FloatArray] = {}
    for path, image in _tag(tagger, files, options):
        outcomes[path] = image.outcome
        if image.embed is not None:
            embeds[printable_path(path)] = image.embed
        if as_json:
            print_line(json_line(printable_path(path), image.outcome, raw_scores), flush=True)
    if not as_json:
        print_table(outcomes, raw_scores)
    if embeddings is not None and embeds:
        write_embeddings(
            StoredEmbeddings(
                tuple(embeds), np.stack(list(embeds.values())), tagger.scorer.fingerprint
            ),
            embeddings,
        )
    return int(any(isinstance(outcome, TaggerError) for outcome in outcomes.values()))


def _tag(
    tagger: "LocalTagger", files: Sequence[Path], options: TagOptions
) -> Iterator[tuple[Path, TaggedImage]]:
    for chunk in in_chunks(files, tagger.batch_size, "Tagging"):
        yield from zip(chunk, tagger.tag_images(read_chunk(chunk), options), strict=True)
