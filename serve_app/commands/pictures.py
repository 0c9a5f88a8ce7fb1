"""Files on the command line: which pictures they are, and their embeddings with a progress bar."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from serve_app.errors import InvalidRequest, TaggerError
from serve_app.local_tagger import LocalTagger
from serve_app.picture_files import SUFFIXES, pictures_in
from serve_app.siglip.inputs import FloatArray

PROGRESS_FROM = 3
"""Fewer pictures than this are done before a progress bar can be read."""


def expand(photos: Sequence[Path]) -> list[Path]:
    """Return the pictures that some paths name: themselves, or those in a folder.

    Raises:
        InvalidRequest: A path is not there, or there are no pictures.
    """
    files: list[Path] = []
    for path in photos:
        if path.is_dir():
            files += pictures_in(path)
        elif path.is_file():
            files.append(path)
        else:
            raise InvalidRequest(f"{path} is not there.")
    if not files:
        raise InvalidRequest(f"no pictures in {', '.join(str(path) for path in photos)}; read are {', '.join(SUFFIXES)}")
    return files


def shown(path: Path) -> str:
    """Return a path as text that can be printed and stored, also where its bytes are no Unicode."""
    return str(path).encode(errors="backslashreplace").decode()


def in_chunks(files: Sequence[Path], size: int, description: str) -> Iterator[Sequence[Path]]:
    """Yield files in chunks, with a progress bar on standard error."""
    with Progress(console=Console(stderr=True), transient=True, disable=len(files) < PROGRESS_FROM) as progress:
        task = progress.add_task(description, total=len(files))
        for start in range(0, len(files), size):
            chunk = files[start : start + size]
            yield chunk
            progress.advance(task, len(chunk))


@dataclass(frozen=True, slots=True)
class EmbeddedFiles:
    """Files that could be encoded and their embeddings (n, D) float32, unit norm; and the others with what is wrong."""

    kept: tuple[int, ...]
    image_embeds: FloatArray
    problems: tuple[tuple[Path, TaggerError], ...]


def embed_files(tagger: LocalTagger, files: Sequence[Path]) -> EmbeddedFiles:
    """Encode pictures; `kept` are the places of those that could be read.

    Raises:
        InvalidRequest: Not one of them could.
    """
    rows: list[FloatArray] = []
    kept: list[int] = []
    problems: list[tuple[Path, TaggerError]] = []
    at = 0
    for chunk in in_chunks(files, tagger.batch_size, "Encoding"):
        for file, embedded in zip(chunk, tagger.embed_pictures([file.read_bytes() for file in chunk]), strict=True):
            if isinstance(embedded, TaggerError):
                problems.append((file, embedded))
            else:
                kept.append(at)
                rows.append(embedded)
            at += 1
    if not rows:
        raise InvalidRequest(f"none of the {len(files)} pictures could be read; the first: {problems[0][1]}")
    return EmbeddedFiles(tuple(kept), np.stack(rows), tuple(problems))
