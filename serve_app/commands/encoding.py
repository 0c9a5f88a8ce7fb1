"""Encodes images in this process, in chunks and with a progress bar."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from serve_app.client.images import read_image
from serve_app.commands.files import progress_bar
from serve_app.config.service import ServiceConfig
from serve_app.errors import InvalidRequest, RequestError, TaggerError
from serve_app.siglip.inputs import FloatArray

if TYPE_CHECKING:
    from serve_app.pipeline.local_tagger import LocalTagger


def load_tagger(config: ServiceConfig) -> "LocalTagger":
    """Load the pipeline of a configuration in this process.

    Raises:
        ConfigError: The checkpoint or a setting is not usable.
    """
    # imports torch, which takes seconds and is not needed for `--help` and `tag --server`
    from serve_app.pipeline.local_tagger import LocalTagger

    return LocalTagger(config)


def in_chunks(files: Sequence[Path], size: int, description: str) -> Iterator[Sequence[Path]]:
    """Yield files in chunks, and show a progress bar on standard error."""
    with progress_bar(len(files), description) as advance:
        for start in range(0, len(files), size):
            chunk = files[start : start + size]
            yield chunk
            advance(len(chunk))


def read_chunk(files: Sequence[Path]) -> list[bytes | TaggerError]:
    """Return the bytes of each file, or its error.

    A file that cannot be read does not stop the command; it is reported like a damaged image.
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
    """Embeddings of files, and the errors of the files that could not be encoded.

    Attributes:
        encoded: Indices of the encoded files.
        image_embeds: (n, D) float32, unit norm.
        failures: The other files with their errors.
    """

    encoded: tuple[int, ...]
    image_embeds: FloatArray
    failures: tuple[tuple[Path, TaggerError], ...]


def embed_files(tagger: "LocalTagger", files: Sequence[Path]) -> EmbeddedFiles:
    """Encode image files.

    Raises:
        InvalidRequest: None of the files can be encoded.
    """
    outcomes: list[FloatArray | TaggerError] = []
    for chunk in in_chunks(files, tagger.batch_size, "Encoding"):
        outcomes += tagger.encode_images(read_chunk(chunk))

    rows: list[FloatArray] = []
    encoded: list[int] = []
    failures: list[tuple[Path, TaggerError]] = []
    for i, (file, outcome) in enumerate(zip(files, outcomes, strict=True)):
        if isinstance(outcome, TaggerError):
            failures.append((file, outcome))
        else:
            encoded.append(i)
            rows.append(outcome)
    if not rows:
        raise InvalidRequest(
            f"none of the {len(files)} images could be read; the first error: {failures[0][1]}"
        )
    return EmbeddedFiles(tuple(encoded), np.stack(rows), tuple(failures))
