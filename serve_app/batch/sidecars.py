"""XMP sidecars: files beside the images, or in a tree of their own, with tags for photo programs.

They are written from the finished rows, so every engine has them. A mark for each chunk says that
its sidecars are written, so an interrupted run continues.

Not here: the bytes of a sidecar (`xmp.py`).
"""

import hashlib
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from serve_app.batch.cluster import in_groups, on_each
from serve_app.batch.input_tables import Kind
from serve_app.batch.inputs import named_file
from serve_app.batch.job import JobResult
from serve_app.batch.options import BatchOptions
from serve_app.batch.output_files import Writing, read_rows
from serve_app.batch.snapshot import Chunk, read_chunk, snapshot_of_finished
from serve_app.batch.storage import Storage
from serve_app.batch.urls import (
    folder_of,
    is_local,
    is_web,
    joined,
    local_path,
    path_below,
    shown_url,
)
from serve_app.batch.xmp import SUFFIX, is_ours, xmp_packet
from serve_app.errors import ConfigError, TaggerError

logger = logging.getLogger(__name__)

MAX_SIDECAR_BYTES = 2**20
"""Maximum size of our own sidecars; a larger one belongs to another program."""
CONCURRENCY = 16
"""Number of requests that one task has under way."""
CHUNKS_PER_TASK = 8
UNSAFE = re.compile(r"[\x00-\x1f\x7f\\:]")
"""Replaced in web addresses, whose images have no name of their own in the file system."""
NOT_IN_KEYS = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
"""Replaced in keys of a bucket, which cannot contain them."""


@dataclass(frozen=True, slots=True)
class Sidecars:
    """Counts of sidecars.

    Attributes:
        written: Number of sidecars that were written.
        left_alone: Number of sidecars of another program, which were left alone.
        failed: Number of sidecars that could not be written.
        problem: Why the first of those could not be written.
    """

    written: int = 0
    left_alone: int = 0
    failed: int = 0
    problem: str | None = field(default=None, compare=False)

    def __add__(self, other: "Sidecars") -> "Sidecars":
        return Sidecars(
            self.written + other.written,
            self.left_alone + other.left_alone,
            self.failed + other.failed,
            self.problem or other.problem,
        )


WRITTEN = Sidecars(written=1)
LEFT_ALONE = Sidecars(left_alone=1)


@dataclass(frozen=True, slots=True)
class Place:
    """Where sidecars go.

    Attributes:
        prefix: URL below which they go, by the path of the image below INPUT.
        base: URL of INPUT, or of the folder of INPUT if that is a file.
        marks: URL below which the marks of finished chunks are.
    """

    prefix: str
    base: str
    marks: str

    @classmethod
    def of_job(cls, prefix: str, options: BatchOptions, folder: str) -> "Place":
        """Return where the sidecars of a job go; each prefix has its own marks."""
        source = options.source
        base = source if named_file(options.storage, source) is None else folder_of(source)
        digest = hashlib.sha256(prefix.encode()).hexdigest()[:10]
        return cls(prefix, base, joined(folder, f"_xmp-{digest}"))

    def mark(self, name: str) -> str:
        """Return the URL of a chunk's mark.

        Its name does not match `part-*`, so readers ignore it.
        """
        return joined(self.marks, "done-" + name.replace("/", "+"))


def write_sidecars(prefix: str, options: BatchOptions, result: JobResult) -> Sidecars:
    """Write a sidecar for every tagged image of a finished job.

    Args:
        prefix: URL below which they go, by the path of the image below INPUT.
        options: Options of the job.
        result: Result of the job.

    Raises:
        TaggerError: Not one sidecar of the job can be written.
    """
    writing = Writing.into(result.folder, options)
    snapshot = snapshot_of_finished(writing.storage, writing.folder)
    place = Place.of_job(prefix, options, writing.folder)

    marks = {found.url for found in writing.storage.list(place.marks)}
    missing = [chunk for chunk in snapshot.chunks if place.mark(chunk.name) not in marks]
    groups = in_groups(missing, CHUNKS_PER_TASK)
    done = on_each(write_of_chunks, [(writing, group, snapshot.kind, place) for group in groups])

    total = sum(done, Sidecars())
    if total.failed and not (marks or total.written or total.left_alone):
        raise ConfigError(f"Not one sidecar can be written. The first: {total.problem}")
    return total


def write_of_chunks(
    writing: Writing, chunks: Sequence[Chunk], kind: Kind, place: Place
) -> Sidecars:
    """Write the sidecars of some chunks, and the mark of each whose sidecars are all written.

    A sidecar that cannot be written is counted.

    Raises:
        TaggerError: The rows of a chunk cannot be read, or its mark cannot be written.
    """
    total = Sidecars()
    with ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="xmp") as threads:
        for chunk in chunks:
            tagged = _tagged_images(writing, chunk, kind, place)
            outcome = sum(threads.map(partial(_write, writing.storage), tagged), Sidecars())
            total += outcome
            if not outcome.failed:
                writing.storage.write(place.mark(chunk.name), b"")
                continue
            logger.warning(
                "%d sidecars of %s are missing; the first: %s",
                outcome.failed,
                chunk.name,
                outcome.problem,
            )
    return total


def _tagged_images(
    writing: Writing, chunk: Chunk, kind: Kind, place: Place
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the URLs of the sidecars of a chunk, and the tags that go into them."""
    files = read_chunk(writing.storage, writing.folder, chunk)["file"].to_pylist()
    rows = read_rows(writing, chunk.name, ["uri", "tags", "error"])
    return [
        (joined(place.prefix, _path_of(place, kind, file, row["uri"])), row["tags"])
        for file, row in zip(files, rows, strict=True)
        if row["error"] is None
    ]


def sidecar_path(url: str, base: str, member: str = "") -> str:
    """Return the path of an image's sidecar below the prefix: that of the image itself.

    The path never leads out of the prefix.

    Args:
        url: URL of the object that is or contains the image.
        base: URL of the folder that is or contains INPUT; an image elsewhere has its whole path.
        member: Name of the image within the object, if that contains several.
    """
    query = ""
    path = path_below(url, base)
    if is_web(url):
        path, query = _path_on_the_web(url)
    elif path is None:
        path = local_path(url) if is_local(url) else url.partition("://")[2]
    parts = [part for part in [*path.split("/"), *member.split("/")] if part not in ("", ".", "..")]
    digest = f".{hashlib.sha256(url.encode()).hexdigest()[:8]}" if query else ""
    return ("/".join(parts) or "picture") + digest + SUFFIX


def _path_on_the_web(url: str) -> tuple[str, str]:
    """Return the host and path of a web address as a path, and its query."""
    bare, _, query = url.partition("://")[2].partition("?")
    return UNSAFE.sub("_", bare), query


def _path_of(place: Place, kind: Kind, file: str, uri: str) -> str:
    """Return where the sidecar of an input goes."""
    member = "" if kind == "object" else uri.removeprefix(f"{shown_url(file)}#")
    path = sidecar_path(file, place.base, member)
    return path if is_local(place.prefix) else NOT_IN_KEYS.sub("_", path)


def _write(storage: Storage, sidecar: tuple[str, list[dict[str, Any]]]) -> Sidecars:
    """Write one sidecar, unless another program has written it, and return which was the case."""
    url, tags = sidecar
    try:
        found = storage.find(url)
        if found is not None and not _may_replace(storage, url, found.size):
            return LEFT_ALONE
        storage.write(url, xmp_packet([tag["label"] for tag in tags]))
    except TaggerError as error:
        return Sidecars(failed=1, problem=str(error))
    return WRITTEN


def _may_replace(storage: Storage, url: str, size: int) -> bool:
    """Return whether an existing sidecar is our own."""
    if size > MAX_SIDECAR_BYTES:
        return False
    data, _ = storage.read(url, MAX_SIDECAR_BYTES)
    return is_ours(data)
