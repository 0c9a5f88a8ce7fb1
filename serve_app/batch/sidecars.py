"""XMP sidecars: a file beside each picture, or in a tree of its own, that photo programs read the
tags from.

Written from the finished rows, so that every engine has them, and chunk by chunk with a mark for
each: a run that was stopped goes on.
"""

import hashlib
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any
from xml.etree import ElementTree

from serve_app.batch.cluster import on_each
from serve_app.batch.input_tables import Kind
from serve_app.batch.inputs import named_file
from serve_app.batch.job import JobResult
from serve_app.batch.options import BatchOptions
from serve_app.batch.rows import Writing, read_rows
from serve_app.batch.snapshot import Chunk, load_snapshot, read_chunk
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
from serve_app.errors import ConfigError, TaggerError
from serve_app.terminal.printable import HIDDEN

logger = logging.getLogger(__name__)

TOOL = "siglip-serve"
MAX_SIDECAR_BYTES = 2**20
"""Of a sidecar that we may have written; a larger one is another program's."""
SUFFIX = ".xmp"
WRITERS = 16
"""Requests that one task has under way."""
CHUNKS_PER_TASK = 8
NAMESPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
}
"""Source: XMP specification part 1 (ISO 16684-1:2019), 7.4 and 8.3."""
PACKET_ID = "W5M0MpCehiHzreSzNTczkc9d"
"""Of every packet. Source: the same, 7.3.2."""
UNSAFE = re.compile(r"[\x00-\x1f\x7f\\:]")
"""Replaced in web addresses, whose images have no name of their own in the file system."""
NOT_IN_KEYS = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
"""Replaced in keys of a bucket, which cannot contain them."""
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Sidecars:
    """How many were written, how many are another program's and were left alone, and how many could
    not be written.

    Attributes:
        written: Number of sidecars that were written.
        left_alone: Number of sidecars of another program.
        failed: Number of sidecars that could not be written.
        problem: Why the first of those could not be.
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
        prefix: URL below which they go, by the path that an image has below INPUT.
        base: URL of INPUT, or of the folder of INPUT where that is a file.
        marks: URL below which it is noted which chunks are done.
    """

    prefix: str
    base: str
    marks: str

    def mark(self, name: str) -> str:
        """Return the URL of a chunk's mark.

        Its name does not match `part-*`, so readers ignore it.
        """
        return joined(self.marks, "done-" + name.replace("/", "+"))


def write_sidecars(prefix: str, options: BatchOptions, result: JobResult) -> Sidecars:
    """Write a sidecar for every tagged image of a finished job.

    Args:
        prefix: URL below which they go, by the path that an image has below INPUT.
        options: Of the job.
        result: Of the job.

    Raises:
        TaggerError: Not one sidecar of the job can be written.
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
    source = options.source
    base = source if named_file(options.storage, source) is None else folder_of(source)
    place = Place(
        prefix,
        base,
        joined(writing.folder, f"_xmp-{hashlib.sha256(prefix.encode()).hexdigest()[:10]}"),
    )
    there = {found.url for found in writing.storage.list(place.marks)}
    left = [chunk for chunk in snapshot.chunks if place.mark(chunk.name) not in there]
    groups = [
        left[start : start + CHUNKS_PER_TASK] for start in range(0, len(left), CHUNKS_PER_TASK)
    ]
    done = on_each(write_of_chunks, [(writing, group, snapshot.kind, place) for group in groups])
    total = sum(done, Sidecars())
    if total.failed and not (there or total.written or total.left_alone):
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
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="xmp") as threads:
        for chunk in chunks:
            files = read_chunk(writing.storage, writing.folder, chunk)["file"].to_pylist()
            rows = zip(files, read_rows(writing, chunk.name, ["uri", "tags", "error"]), strict=True)
            tagged = [
                (joined(place.prefix, _path_of(place, kind, file, row["uri"])), row["tags"])
                for file, row in rows
                if row["error"] is None
            ]
            outcome = sum(threads.map(partial(_write, writing.storage), tagged), Sidecars())
            total += outcome
            if outcome.failed:
                logger.warning(
                    "%d sidecars of %s are missing; the first: %s",
                    outcome.failed,
                    chunk.name,
                    outcome.problem,
                )
            else:
                writing.storage.write(place.mark(chunk.name), b"")
    return total


def sidecar_path(url: str, base: str, member: str = "") -> str:
    """Return where an image's sidecar goes below the prefix: by the image's own path and name.

    The path never leads out of the prefix.

    Args:
        url: Of the object that is or holds the image.
        base: URL of the folder that INPUT is or lies in; another image goes by its whole path.
        member: Name of the image within the object, if that holds several.
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


def xmp_packet(labels: Sequence[str]) -> bytes:
    """Return a sidecar's bytes: labels as `dc:subject`, the best first."""
    for prefix, uri in NAMESPACES.items():
        ElementTree.register_namespace(prefix, uri)
    meta = ElementTree.Element(_name("x", "xmpmeta"))
    rdf = ElementTree.SubElement(meta, _name("rdf", "RDF"))
    made = {_name("rdf", "about"): "", _name("xmp", "CreatorTool"): TOOL}
    made[_name("xmp", "MetadataDate")] = datetime.now(UTC).isoformat(timespec="seconds")
    description = ElementTree.SubElement(rdf, _name("rdf", "Description"), made)
    bag = ElementTree.SubElement(
        ElementTree.SubElement(description, _name("dc", "subject")), _name("rdf", "Bag")
    )
    for label in labels:
        ElementTree.SubElement(bag, _name("rdf", "li")).text = NOT_XML.sub(
            "", HIDDEN.sub("", label)
        )
    ElementTree.indent(meta)
    body = ElementTree.tostring(meta, encoding="unicode")
    return f'<?xpacket begin="\ufeff" id="{PACKET_ID}"?>\n{body}\n<?xpacket end="w"?>\n'.encode()


def _write(storage: Storage, sidecar: tuple[str, list[dict[str, Any]]]) -> Sidecars:
    """Write one sidecar, or leave one alone that another program has written, and return which it
    was.
    """
    url, tags = sidecar
    try:
        found = storage.find(url)
        if found is not None:
            ours = (
                found.size <= MAX_SIDECAR_BYTES
                and f'CreatorTool="{TOOL}"'.encode() in storage.read(url, MAX_SIDECAR_BYTES)[0]
            )
            if not ours:
                return LEFT_ALONE
        storage.write(url, xmp_packet([tag["label"] for tag in tags]))
    except TaggerError as error:
        return Sidecars(failed=1, problem=str(error))
    return WRITTEN


def _name(prefix: str, name: str) -> str:
    return f"{{{NAMESPACES[prefix]}}}{name}"
