"""Reads the bytes of inputs, several at a time, so that the network and the decoder overlap.

Not here: the rows of tables (`table_images.py`).
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from serve_app.batch.input_tables import DAMAGED, MALFORMED, Kind
from serve_app.batch.local_files import too_large
from serve_app.batch.storage import Storage
from serve_app.batch.table_images import TableImages
from serve_app.batch.urls import shown_url
from serve_app.errors import InvalidRequest, RequestError, SourceUnavailable

CONCURRENCY = 16
"""Objects that one task reads at the same time.

An object store responds in some 50 ms, and an image is decoded in 10 ms.
"""


@dataclass(frozen=True, slots=True)
class ReadImage:
    """The bytes and ETag of one input, or the reason why there are none."""

    data: bytes
    etag: str | None
    error: RequestError | None = None


def read_inputs(
    inputs: pa.Table, kind: Kind, image_column: str | None, storage: Storage, max_bytes: int
) -> Iterator[ReadImage]:
    """Yield the image of each input, in order.

    Args:
        inputs: The inputs; `inputs.py` lists the columns.
        kind: How they are read.
        image_column: Column of a table that contains the images.
        storage: How objects are read.
        max_bytes: Maximum size of one image.
    """
    if kind == "row":
        yield from _read_rows(inputs, image_column or "", storage, max_bytes)
        return

    read = _read_object if kind == "object" else _read_member
    with ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="read") as threads:
        ahead: deque[Future[ReadImage]] = deque()
        for row in inputs.select(["etag", "size", "file", "offset"]).to_pylist():
            ahead.append(threads.submit(read, row, storage, max_bytes))
            if len(ahead) > CONCURRENCY:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _read_object(row: dict[str, Any], storage: Storage, max_bytes: int) -> ReadImage:
    url = row["file"]
    try:
        if row["offset"] == DAMAGED:
            raise _damaged(url)
        if row["offset"] == MALFORMED:
            raise InvalidRequest(
                f"This line of {shown_url(url)} cannot be read: {_why_malformed(url)}."
            )
        if not url:
            raise InvalidRequest("The row names no image.")
        if row["size"] is not None and row["size"] > max_bytes:
            raise too_large(row["size"], max_bytes)
        data, etag = storage.read(url, max_bytes)
        return ReadImage(data, etag)
    except RequestError as error:
        return ReadImage(b"", row["etag"], error)


def _read_member(row: dict[str, Any], storage: Storage, max_bytes: int) -> ReadImage:
    url = row["file"]
    offset = row["offset"]
    size = row["size"]
    try:
        if size is None:  # the listing marks the damage in a tar file this way
            raise SourceUnavailable(
                f"{shown_url(url)} is damaged or cut off at byte {offset:,}; "
                "its members from there on are missing."
            )
        if size > max_bytes:
            raise too_large(size, max_bytes)
        return ReadImage(storage.read_range(url, offset, size), row["etag"])
    except RequestError as error:
        return ReadImage(b"", row["etag"], error)


def _read_rows(
    inputs: pa.Table, column: str, storage: Storage, max_bytes: int
) -> Iterator[ReadImage]:
    """Yield the images of some rows of Parquet files."""
    images: TableImages | None = None
    for row in inputs.select(["file", "offset", "etag"]).to_pylist():
        url = row["file"]
        try:
            if row["offset"] == DAMAGED:
                raise _damaged(url)
            if images is None or images.url != url:
                images = TableImages.open(storage, url, column)
            data = images.image(row["offset"])
            if len(data) > max_bytes:
                raise too_large(len(data), max_bytes)
            yield ReadImage(data, row["etag"])
        except RequestError as error:
            yield ReadImage(b"", row["etag"], error)


def _damaged(url: str) -> SourceUnavailable:
    return SourceUnavailable(f"{shown_url(url)} is damaged; its rows from here on cannot be read.")


def _why_malformed(file: str) -> str:
    """Return what is wrong with a malformed row of a manifest, by the format of the manifest."""
    if file.lower().endswith(".csv"):
        return "it has more fields than the header or a quote without its end, or is too long"
    return "it is not a JSON object"
