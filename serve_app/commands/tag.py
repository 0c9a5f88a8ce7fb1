"""`siglip-serve tag`: pictures in, a table or JSON lines out, everything in this process."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from serve_app.commands.json_lines import json_line
from serve_app.commands.pictures import expand, in_chunks, shown
from serve_app.commands.stored import StoredEmbeddings, write_embeddings
from serve_app.config import ServiceConfig
from serve_app.errors import TaggerError
from serve_app.local_tagger import LocalTagger
from serve_app.siglip.inputs import FloatArray
from serve_app.tagger import TagOutcome
from serve_app.tagging.selection import TagScore
from serve_app.tagging.settings import TagOptions


def tag_files(photos: Sequence[Path], config: ServiceConfig, options: TagOptions, as_json: bool, embeddings: Path | None = None) -> int:
    """Tag files and print what they show; return 1 if one of them could not be tagged, else 0.

    Args:
        photos: Pictures, and folders of pictures.
        config: The configuration.
        options: What is asked for.
        as_json: One JSON object a line instead of a table.
        embeddings: Where to store the embeddings, to be tagged again by `siglip-serve score`.

    Raises:
        ConfigError: The checkpoint or a setting cannot work.
        InvalidRequest: A file is not there, or an option cannot work.
    """
    files = expand(photos)
    tagger = LocalTagger(config)
    found: dict[Path, TagOutcome] = {}
    kept: dict[str, FloatArray] = {}
    for path, outcome, embed in _tag(tagger, files, options):
        found[path] = outcome
        if embed is not None:
            kept[shown(path)] = embed
        if as_json:
            print(json_line(shown(path), outcome), flush=True)
    if not as_json:
        Console(width=None if sys.stdout.isatty() else 120, markup=False, emoji=False, highlight=False).print(_table(found))
    if embeddings is not None and kept:
        write_embeddings(StoredEmbeddings(tuple(kept), np.stack(list(kept.values())), tagger.scorer.fingerprint), embeddings)
    return int(any(isinstance(outcome, TaggerError) for outcome in found.values()))


def _tag(tagger: LocalTagger, files: Sequence[Path], options: TagOptions) -> Iterator[tuple[Path, TagOutcome, FloatArray | None]]:
    for chunk in in_chunks(files, tagger.batch_size, "Tagging"):
        answer = tagger.tag_pictures([file.read_bytes() for file in chunk], options, with_embeddings=True)
        assert answer.image_embeds is not None, "embeddings were asked for"
        yield from zip(chunk, answer.outcomes, answer.image_embeds, strict=True)


def _table(found: dict[Path, TagOutcome]) -> Table:
    shared_folder = os.path.commonpath([path.resolve().parent for path in found]) if len(found) > 1 else ""
    table = Table("picture", "tag", "confidence", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    for path, outcome in found.items():
        name = shown(Path(os.path.relpath(path.resolve(), shared_folder)) if shared_folder else path)
        if isinstance(outcome, TaggerError):
            table.add_row(name, Text(outcome.message, "red"), "")
            continue
        for row, tag in enumerate(outcome or (None,)):
            label, confidence = _cells(tag)
            table.add_row(name if row == 0 else "", label, confidence)
    return table


def _cells(tag: TagScore | None) -> tuple[str | Text, str]:
    if tag is None:
        return Text("nothing above the threshold", "dim"), ""
    confidence = f"{tag.confidence:.3f}" if tag.confidence >= 0.001 else f"{tag.confidence:.1e}"
    return tag.label, confidence
