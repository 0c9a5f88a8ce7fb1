"""The contact sheet of a job: one self-contained HTML file with a sample of images."""

import base64
import io
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import jinja2
import pyarrow as pa

from serve_app.batch.input_tables import OWN
from serve_app.batch.job import JobResult
from serve_app.batch.options import BatchOptions
from serve_app.batch.output_files import Writing, read_rows
from serve_app.batch.reading import ReadImage, read_inputs
from serve_app.batch.snapshot import Snapshot, read_chunk, snapshot_of_finished
from serve_app.batch.urls import shown_url
from serve_app.errors import RequestError
from serve_app.images.decoding import decode_image
from serve_app.images.limits import ImageLimits
from serve_app.terminal.printable import printable

MAX_IMAGES = 60
MAX_ERRORS = 20
MAX_CHUNKS = 24
"""Chunks from which images and errors are drawn."""
MAX_TAGS = 8
"""Tags that are shown per image."""
MAX_FREQUENT = 25
"""Tags in the list of frequent ones."""
THUMBNAIL_PX = 256
JPEG_QUALITY = 80
MAX_BYTES = 64 * 2**20
SEED = 0
"""The same job always gives the same sample."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """A row, its input, and the image as a small base64 JPEG; empty if it cannot be read now."""

    row: dict[str, Any]
    input: pa.Table
    thumbnail: str = ""


def write_report(file: str, options: BatchOptions, result: JobResult) -> None:
    """Write the contact sheet of a finished job.

    Args:
        file: URL of the HTML file.
        options: Options of the job.
        result: Result of the job.

    Raises:
        TaggerError: The output cannot be read, or the file cannot be written.
    """
    writing = Writing.into(result.folder, options)
    snapshot = snapshot_of_finished(writing.storage, writing.folder)
    draw = random.Random(SEED)
    samples = _rows_of_some_chunks(snapshot, writing, draw)
    tagged = [sample for sample in samples if sample.row["error"] is None]
    failed = [sample for sample in samples if sample.row["error"] is not None]
    shown = draw.sample(tagged, min(MAX_IMAGES, len(tagged)))
    labels = Counter(tag["label"] for sample in tagged for tag in sample.row["tags"])

    page = _template().render(
        result=result,
        folder=shown_url(result.folder),
        source=shown_url(options.source),
        failed_count=sum(result.errors.values()),
        sampled=len(samples),
        frequent=labels.most_common(MAX_FREQUENT),
        images=_with_thumbnails(shown, snapshot, options),
        failed=draw.sample(failed, min(MAX_ERRORS, len(failed))),
        max_tags=MAX_TAGS,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    options.storage.write(file, page.encode())


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, finalize=_shown, trim_blocks=True, lstrip_blocks=True
    )
    source = files("serve_app.batch").joinpath("report.html").read_text(encoding="utf-8")
    return environment.from_string(source)


def _shown(value: Any) -> Any:
    """Escape hidden characters in everything that the page shows; jinja escapes those of HTML."""
    return printable(value) if type(value) is str else value


def _rows_of_some_chunks(
    snapshot: Snapshot, writing: Writing, draw: random.Random
) -> list[_Sample]:
    samples: list[_Sample] = []
    columns = ["uri", "width", "height", "tags", "error", "checkpoint"]
    for chunk in draw.sample(snapshot.chunks, min(MAX_CHUNKS, len(snapshot.chunks))):
        inputs = read_chunk(writing.storage, writing.folder, chunk)
        rows = read_rows(writing, chunk.name, columns)
        samples += [_Sample(row, inputs.slice(i, 1)) for i, row in enumerate(rows)]
    return samples


def _with_thumbnails(
    samples: Sequence[_Sample], snapshot: Snapshot, options: BatchOptions
) -> list[_Sample]:
    if not samples:
        return []
    inputs = pa.concat_tables([sample.input.select(OWN.names) for sample in samples])
    reads = read_inputs(inputs, snapshot.kind, snapshot.image_column, options.storage, MAX_BYTES)
    return [
        replace(sample, thumbnail=_thumbnail(read))
        for sample, read in zip(samples, reads, strict=True)
    ]


def _thumbnail(read: ReadImage) -> str:
    if read.error is not None:
        return ""
    try:
        image = decode_image(read.data, ImageLimits(), THUMBNAIL_PX)
    except RequestError:
        return ""
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(file.getvalue()).decode()
