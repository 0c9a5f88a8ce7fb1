"""From inputs to their bytes: a few at a time, so that the network and the decoder work
together.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from serve_app.batch.input_tables import DAMAGED, MALFORMED, Kind
from serve_app.batch.storage import Storage, shown_url
from serve_app.errors import (
    ConfigError,
    InvalidRequest,
    PayloadTooLarge,
    RequestError,
    SourceUnavailable,
)

CONCURRENCY = 16
"""Objects that one task reads at the same time: an object store answers in some 50 ms, and a
picture is decoded in 10."""


MAX_ROW_GROUP_BYTES = 4 * 2**30
"""Of the column of images in one row group, unpacked, which is held in memory as a whole."""


@dataclass(frozen=True, slots=True)
class Read:
    """One input's bytes and ETag, or why there are none."""

    data: bytes
    etag: str | None
    error: RequestError | None = None


def read_inputs(
    rows: pa.Table, kind: Kind, image_column: str | None, storage: Storage, most: int
) -> Iterator[Read]:
    """Yield what each input holds, in order.

    Args:
        rows: The inputs; see `inputs.py`.
        kind: How they are read.
        image_column: Of a table of pictures.
        storage: Where they lie.
        most: Bytes of one picture.
    """
    if kind == "row":
        yield from _read_rows(rows, image_column or "", storage, most)
        return
    inputs = rows.select(["etag", "size", "file", "offset"]).to_pylist()
    read = _read_object if kind == "object" else _read_member
    with ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="read") as threads:
        ahead: deque[Future[Read]] = deque()
        for given in inputs:
            ahead.append(threads.submit(read, given, storage, most))
            if len(ahead) > CONCURRENCY:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _read_object(given: dict[str, Any], storage: Storage, most: int) -> Read:
    try:
        if given["offset"] == DAMAGED:
            raise SourceUnavailable(
                f"{shown_url(given['file'])} is damaged; its rows from here on cannot be read."
            )
        if given["offset"] == MALFORMED:
            raise InvalidRequest(
                f"This line of {shown_url(given['file'])} cannot be read: {_why_malformed(given['file'])}."
            )
        if not given["file"]:
            raise InvalidRequest("The row names no picture.")
        if given["size"] is not None and given["size"] > most:
            raise PayloadTooLarge(
                f"The picture has {given['size']:,} bytes; at most {most:,} are read (limits.max_image_bytes)."
            )
        data, etag = storage.read(given["file"], most)
        return Read(data, etag)
    except RequestError as error:
        return Read(b"", given["etag"], error)


def _why_malformed(file: str) -> str:
    """Return what is wrong with a malformed row of a manifest, by the format of the manifest."""
    if file.lower().endswith(".csv"):
        return "it has more fields than the header or a quote without its end, or is too long"
    return "it is not a JSON object"


def _read_member(given: dict[str, Any], storage: Storage, most: int) -> Read:
    try:
        if given["size"] is None:  # how the listing notes damage
            at = f"at byte {given['offset']:,}"
            raise SourceUnavailable(
                f"{shown_url(given['file'])} is damaged or cut off {at}; its members from there on are missing."
            )
        if given["size"] > most:
            raise PayloadTooLarge(
                f"The picture has {given['size']:,} bytes; at most {most:,} are read (limits.max_image_bytes)."
            )
        return Read(
            storage.read_range(given["file"], given["offset"], given["size"]), given["etag"]
        )
    except RequestError as error:
        return Read(b"", given["etag"], error)


def _read_rows(rows: pa.Table, column: str, storage: Storage, most: int) -> Iterator[Read]:
    """Yield the pictures of some rows of Parquet files, reading each row group that holds one of
    them once.
    """
    wanted = list(
        zip(
            rows["file"].to_pylist(),
            rows["offset"].to_pylist(),
            rows["etag"].to_pylist(),
            strict=True,
        )
    )
    file: str | None = None
    groups = _RowGroups()
    for url, row, etag in wanted:
        try:
            if row == DAMAGED:
                raise SourceUnavailable(
                    f"{shown_url(url)} is damaged; its rows from here on cannot be read."
                )
            if url != file:
                groups = _RowGroups.open(storage, url, column)
                file = url
            data = groups.picture(row)
            if data is None:
                raise InvalidRequest("The row holds no picture.")
            if len(data) > most:
                raise PayloadTooLarge(
                    f"The picture has {len(data):,} bytes; at most {most:,} are read (limits.max_image_bytes)."
                )
            yield Read(data, etag)
        except RequestError as error:
            yield Read(b"", etag, error)


class _RowGroups:
    """One column of a Parquet file, a row group at a time."""

    def __init__(self, file: "pq.ParquetFile | None" = None, column: str = "") -> None:
        self._file = file
        self._column = column
        self._start = self._stop = 0
        self._held: pa.ChunkedArray | None = None

    @classmethod
    def open(cls, storage: Storage, url: str, column: str) -> "_RowGroups":
        """Open a file; raises `SourceUnavailable`."""
        try:
            return cls(pq.ParquetFile(storage.open(url)), column)
        except (ConfigError, pa.ArrowException, OSError, ValueError) as error:
            raise SourceUnavailable(f"The table {shown_url(url)} cannot be read.") from error

    def picture(self, row: int) -> bytes | None:
        """Return the picture of a row, or None for an empty one."""
        if self._held is None or not self._start <= row < self._stop:
            self._load(row)
        assert self._held is not None, "a row group was loaded"
        value = self._held[row - self._start].as_py()
        data = value["bytes"] if isinstance(value, dict) else value
        if data is not None and not isinstance(data, bytes):
            raise InvalidRequest("The row holds something else than the bytes of an image.")
        return data

    def _load(self, row: int) -> None:
        assert self._file is not None, "a file was opened"
        start = 0
        for group in range(self._file.num_row_groups):
            count = self._file.metadata.row_group(group).num_rows
            if row < start + count:
                nbytes = _column_bytes(self._file.metadata.row_group(group), self._column)
                if nbytes > MAX_ROW_GROUP_BYTES:
                    raise SourceUnavailable(
                        f"A row group of the table has {nbytes:,} bytes; at most {MAX_ROW_GROUP_BYTES:,} are read."
                    )
                try:
                    self._held = self._file.read_row_group(group, columns=[self._column])[
                        self._column
                    ]
                except (pa.ArrowException, OSError, KeyError, ValueError) as error:
                    raise SourceUnavailable("The table cannot be read.") from error
                self._start = start
                self._stop = start + count
                return
            start += count
        raise SourceUnavailable("The table has fewer rows than when it was listed.")


def _column_bytes(group: Any, column: str) -> int:
    """Return the unpacked bytes of one column of a row group, all parts of a struct together."""
    parts = (group.column(i) for i in range(group.num_columns))
    return sum(
        part.total_uncompressed_size
        for part in parts
        if part.path_in_schema.split(".")[0] == column
    )
