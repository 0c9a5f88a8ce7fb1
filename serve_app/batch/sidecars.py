"""XMP sidecars: a file beside each picture, or in a tree of its own, that photo programs read the tags from.

Written from the finished rows, so that every engine has them, and chunk by chunk with a mark for each: a run that was stopped goes on.
"""

import hashlib
import posixpath
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from xml.etree import ElementTree

from serve_app.batch.cluster import on_each
from serve_app.batch.job import JobResult
from serve_app.batch.options import BatchOptions
from serve_app.batch.rows import Writing, read_rows
from serve_app.batch.snapshot import load_snapshot
from serve_app.batch.storage import Storage, joined, shown_url
from serve_app.errors import ConfigError
from serve_app.terminal import HIDDEN

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
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Sidecars:
    """How many were written, and how many are another program's and were left alone."""

    written: int = 0
    left_alone: int = 0


def write_sidecars(prefix: str, options: BatchOptions, result: JobResult) -> Sidecars:
    """Write a sidecar for every tagged picture of a finished job.

    Args:
        prefix: URL below which they go, by the path that a picture has below INPUT.
        options: Of the job.
        result: Of the job.

    Raises:
        TaggerError: The store does not take them.
    """
    writing = Writing(options.storage, result.folder, options.output_format, options.compression, options.embeddings)
    snapshot = load_snapshot(writing.storage, writing.folder)
    if snapshot is None:
        raise ConfigError(f"{shown_url(writing.folder)} holds no inputs; run the job again.")
    marks = joined(writing.folder, f"_xmp-{hashlib.sha256(prefix.encode()).hexdigest()[:10]}")
    there = {found.url for found in writing.storage.list(marks)}
    left = [chunk.name for chunk in snapshot.chunks if _mark(marks, chunk.name) not in there]
    groups = [left[start : start + CHUNKS_PER_TASK] for start in range(0, len(left), CHUNKS_PER_TASK)]
    source = shown_url(options.source)
    done = on_each(write_of_chunks, [(writing, group, source, prefix, marks) for group in groups])
    return Sidecars(sum(one.written for one in done), sum(one.left_alone for one in done))


def write_of_chunks(writing: Writing, names: Sequence[str], source: str, prefix: str, marks: str) -> Sidecars:
    """Write the sidecars of some chunks, and the mark of each."""
    written = left_alone = 0
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="xmp") as threads:
        for name in names:
            rows = [row for row in read_rows(writing, name, ["uri", "tags", "error"]) if row["error"] is None]
            outcomes = list(threads.map(partial(_write, writing.storage, source, prefix), rows))
            written += sum(outcomes)
            left_alone += len(outcomes) - sum(outcomes)
            writing.storage.write(_mark(marks, name), b"")
    return Sidecars(written, left_alone)


def sidecar_path(uri: str, source: str) -> str:
    """Return where a picture's sidecar goes below the prefix; it never leads out of it.

    Args:
        uri: Of the picture, as rows have it.
        source: INPUT, as it is shown.
    """
    base = source.rstrip("/") + "/"
    bare, query, _ = uri.partition("?")
    path = bare.removeprefix(base) if bare.startswith(base) else bare.partition("://")[2] or bare
    parts = [UNSAFE.sub("_", part) for part in path.replace("#", "/").split("/") if part not in ("", ".", "..")]
    digest = f".{hashlib.sha256(uri.encode()).hexdigest()[:8]}" if query else ""
    return posixpath.join(*parts) + digest + SUFFIX if parts else f"picture{digest}{SUFFIX}"


def xmp_packet(labels: Sequence[str]) -> bytes:
    """Return a sidecar's bytes: labels as `dc:subject`, the best first."""
    for prefix, uri in NAMESPACES.items():
        ElementTree.register_namespace(prefix, uri)
    meta = ElementTree.Element(_name("x", "xmpmeta"))
    rdf = ElementTree.SubElement(meta, _name("rdf", "RDF"))
    made = {_name("rdf", "about"): "", _name("xmp", "CreatorTool"): TOOL}
    made[_name("xmp", "MetadataDate")] = datetime.now(UTC).isoformat(timespec="seconds")
    description = ElementTree.SubElement(rdf, _name("rdf", "Description"), made)
    bag = ElementTree.SubElement(ElementTree.SubElement(description, _name("dc", "subject")), _name("rdf", "Bag"))
    for label in labels:
        ElementTree.SubElement(bag, _name("rdf", "li")).text = NOT_XML.sub("", HIDDEN.sub("", label))
    ElementTree.indent(meta)
    body = ElementTree.tostring(meta, encoding="unicode")
    return f'<?xpacket begin="\ufeff" id="{PACKET_ID}"?>\n{body}\n<?xpacket end="w"?>\n'.encode()


def _write(storage: Storage, source: str, prefix: str, row: dict[str, Any]) -> bool:
    """Write one sidecar; leave one alone that another program has written, and return False."""
    url = joined(prefix, sidecar_path(row["uri"], source))
    found = storage.find(url)
    if found is not None:
        ours = found.size <= MAX_SIDECAR_BYTES and f'CreatorTool="{TOOL}"'.encode() in storage.read(url, MAX_SIDECAR_BYTES)[0]
        if not ours:
            return False
    storage.write(url, xmp_packet([tag["label"] for tag in row["tags"]]))
    return True


def _mark(marks: str, name: str) -> str:
    """Return where it stands that a chunk's sidecars are written; not called like a part, which readers look for."""
    return joined(marks, "done-" + name.replace("/", "+"))


def _name(prefix: str, name: str) -> str:
    return f"{{{NAMESPACES[prefix]}}}{name}"
