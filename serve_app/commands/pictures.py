"""Pictures that are encoded in this process, in batches and with a progress bar."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve_app.client.images import read_image
from serve_app.commands.files import progress_bar
from serve_app.errors import InvalidRequest, RequestError, TaggerError
from serve_app.pipeline.local_tagger import LocalTagger
from serve_app.siglip.inputs import FloatArray


def in_chunks(files: Sequence[Path], size: int, description: str) -> Iterator[Sequence[Path]]:
    """Yield files in chunks, with a progress bar on standard error."""
    with progress_bar(len(files), description) as advance:
        for start in range(0, len(files), size):
            chunk = files[start : start + size]
            yield chunk
            advance(len(chunk))


def read_chunk(files: Sequence[Path]) -> list[bytes | TaggerError]:
    """Return what each of some files holds, or why it could not be read.

    A file that cannot be read ends no command; it is reported like an image that is damaged.
    """
    images: list[bytes | TaggerError] = []
    for file in files:
        try:
            images.append(read_image(file))
        except RequestError as error:
            images.append(error)
    return images


@dataclass(frozen=True, slots=True)
class EmbeddedFiles:
    """Files that could be encoded and their embeddings (n, D) float32, unit norm; and the others
    with what is wrong.
    """

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
        for file, embedded in zip(chunk, tagger.encode_images(read_chunk(chunk)), strict=True):
            if isinstance(embedded, TaggerError):
                problems.append((file, embedded))
            else:
                kept.append(at)
                rows.append(embedded)
            at += 1
    if not rows:
        raise InvalidRequest(
            f"none of the {len(files)} pictures could be read; the first: {problems[0][1]}"
        )
    return EmbeddedFiles(tuple(kept), np.stack(rows), tuple(problems))
