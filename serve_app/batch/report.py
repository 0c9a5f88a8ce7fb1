"""The contact sheet of a job: one HTML file that needs nothing outside it, with a sample of
pictures, so that a person can look.
"""

import base64
import io
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import jinja2
import pyarrow as pa

from serve_app.batch.input_tables import OWN
from serve_app.batch.job import JobResult
from serve_app.batch.options import BatchOptions
from serve_app.batch.reading import Read, read_inputs
from serve_app.batch.rows import Writing, read_rows
from serve_app.batch.snapshot import Snapshot, load_snapshot, read_chunk
from serve_app.batch.storage import shown_url
from serve_app.errors import ConfigError, RequestError
from serve_app.siglip.images.decoding import decode_image
from serve_app.siglip.images.limits import ImageLimits
from serve_app.terminal.printable import printable

PICTURES = 60
ERRORS = 20
CHUNKS = 24
"""Shown at most, and chunks that they are drawn from."""
TAGS = 8
FREQUENT = 25
"""Of a picture, and of all rows that were looked at."""
THUMBNAIL_PX = 256
QUALITY = 80
MAX_BYTES = 64 * 2**20
SEED = 0
"""The same job gives the same sample."""


@dataclass(frozen=True, slots=True)
class _Sampled:
    """A row, its input, and its picture as a small JPEG in base64; empty where it cannot be read
    any more.
    """

    row: dict[str, Any]
    input: pa.Table
    thumbnail: str = ""


def write_report(file: str, options: BatchOptions, result: JobResult) -> None:
    """Write the contact sheet of a finished job.

    Args:
        file: URL of the HTML file.
        options: Of the job.
        result: Of the job.

    Raises:
        TaggerError: The output cannot be read, or the file not written.
    """
    writing = Writing(
        options.storage,
        result.folder,
        options.output_format,
        options.compression,
        options.embeddings,
    )
    snapshot = load_snapshot(writing.storage, writing.folder)
    if snapshot is None:
        raise ConfigError(f"{shown_url(writing.folder)} holds no inputs; run the job again.")
    draw = random.Random(SEED)
    seen = _rows_of_some_chunks(snapshot, writing, draw)
    tagged = [one for one in seen if one.row["error"] is None]
    failed = [one for one in seen if one.row["error"] is not None]
    shown = draw.sample(tagged, min(PICTURES, len(tagged)))
    environment = jinja2.Environment(
        autoescape=True, finalize=_shown, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        files("serve_app.batch").joinpath("report.html").read_text(encoding="utf-8")
    )
    page = template.render(
        result=result,
        folder=shown_url(result.folder),
        source=shown_url(options.source),
        failed_count=sum(result.errors.values()),
        looked_at=len(seen),
        frequent=Counter(tag["label"] for one in tagged for tag in one.row["tags"]).most_common(
            FREQUENT
        ),
        pictures=_with_thumbnails(shown, snapshot, options),
        failed=draw.sample(failed, min(ERRORS, len(failed))),
        most_tags=TAGS,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    options.storage.write(file, page.encode())


def _shown(value: Any) -> Any:
    """Escape hidden characters in whatever the page shows; HTML's own characters are jinja's to
    escape.
    """
    return printable(value) if type(value) is str else value


def _rows_of_some_chunks(
    snapshot: Snapshot, writing: Writing, draw: random.Random
) -> list[_Sampled]:
    found = []
    for chunk in draw.sample(snapshot.chunks, min(CHUNKS, len(snapshot.chunks))):
        inputs = read_chunk(writing.storage, writing.folder, chunk)
        rows = read_rows(
            writing, chunk.name, ["uri", "width", "height", "tags", "error", "checkpoint"]
        )
        found += [_Sampled(row, inputs.slice(at, 1)) for at, row in enumerate(rows)]
    return found


def _with_thumbnails(
    sample: Sequence[_Sampled], snapshot: Snapshot, options: BatchOptions
) -> list[_Sampled]:
    if not sample:
        return []
    inputs = pa.concat_tables([one.input.select(OWN.names) for one in sample])
    reads = read_inputs(inputs, snapshot.kind, snapshot.image_column, options.storage, MAX_BYTES)
    return [
        _Sampled(one.row, one.input, _thumbnail(read))
        for one, read in zip(sample, reads, strict=True)
    ]


def _thumbnail(read: Read) -> str:
    if read.error is not None:
        return ""
    try:
        image = decode_image(read.data, ImageLimits(), THUMBNAIL_PX)
    except RequestError:
        return ""
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=QUALITY)
    return base64.b64encode(sink.getvalue()).decode()
