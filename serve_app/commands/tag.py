"""`siglip-serve tag`: pictures in, a table or JSON lines out, everything in this process."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from serve_app.config import ServiceConfig
from serve_app.errors import InvalidRequest, TaggerError
from serve_app.local_tagger import LocalTagger
from serve_app.tagger import TagOutcome
from serve_app.tagging.selection import TagScore
from serve_app.tagging.settings import TagOptions

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
PROGRESS_FROM = 3
"""Fewer pictures than this are done before a progress bar can be read."""


def tag_files(photos: Sequence[Path], config: ServiceConfig, options: TagOptions, as_json: bool) -> int:
    """Tag files and print what they show; return 1 if one of them could not be tagged, else 0.

    Raises:
        ConfigError: The checkpoint or a setting cannot work.
        InvalidRequest: A file is not there, or an option cannot work.
    """
    files = _expand(photos)
    tagger = LocalTagger(config)
    found: dict[Path, TagOutcome] = {}
    with Progress(console=Console(stderr=True), transient=True, disable=len(files) < PROGRESS_FROM) as progress:
        for path, outcome in progress.track(_tag(tagger, files, options), total=len(files), description="Tagging"):
            found[path] = outcome
            if as_json:
                print(_json_line(path, outcome), flush=True)
    if not as_json:
        Console(width=None if sys.stdout.isatty() else 120).print(_table(found))
    return int(any(isinstance(outcome, TaggerError) for outcome in found.values()))


def _expand(photos: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in photos:
        if path.is_dir():
            files += sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        elif path.is_file():
            files.append(path)
        else:
            raise InvalidRequest(f"{path} is not there.")
    if not files:
        raise InvalidRequest(f"no pictures in {', '.join(str(path) for path in photos)}; read are {', '.join(SUFFIXES)}")
    return files


def _tag(tagger: LocalTagger, files: Sequence[Path], options: TagOptions) -> Iterator[tuple[Path, TagOutcome]]:
    for start in range(0, len(files), tagger.batch_size):
        chunk = files[start : start + tagger.batch_size]
        yield from zip(chunk, tagger.tag_pictures([file.read_bytes() for file in chunk], options).outcomes, strict=True)


def _json_line(path: Path, outcome: TagOutcome) -> str:
    if isinstance(outcome, TaggerError):
        return json.dumps({"file": str(path), "error": {"code": outcome.code, "message": outcome.message}})
    tags = [{"label": tag.label, "confidence": float(f"{tag.confidence:.6g}")} for tag in outcome]
    return json.dumps({"file": str(path), "tags": tags}, ensure_ascii=False)


def _table(found: dict[Path, TagOutcome]) -> Table:
    shared = os.path.commonpath([path.resolve().parent for path in found]) if len(found) > 1 else ""
    table = Table("picture", "tag", "confidence", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    for path, outcome in found.items():
        name = os.path.relpath(path.resolve(), shared) if shared else str(path)
        if isinstance(outcome, TaggerError):
            table.add_row(name, f"[red]{outcome.message}[/red]", "")
            continue
        for row, tag in enumerate(outcome or (None,)):
            table.add_row(name if row == 0 else "", *_cells(tag))
    return table


def _cells(tag: TagScore | None) -> tuple[str, str]:
    if tag is None:
        return "[dim]nothing above the threshold[/dim]", ""
    shown = f"{tag.confidence:.3f}" if tag.confidence >= 0.001 else f"{tag.confidence:.1e}"
    return tag.label, shown
