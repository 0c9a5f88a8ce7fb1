"""The images in one column of a Parquet file, read one row group at a time."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from serve_app.batch.storage import Storage
from serve_app.batch.urls import shown_url
from serve_app.errors import ConfigError, InvalidRequest, SourceUnavailable

MAX_ROW_GROUP_BYTES = 4 * 2**30
"""Maximum unpacked size of the images in one row group, which is held in memory as a whole."""


@dataclass(slots=True)
class _RowGroup:
    """The images of the rows from `start` up to `stop`."""

    start: int
    stop: int
    images: pa.ChunkedArray


class TableImages:
    """The images of one file. Reading them in order reads each row group once."""

    def __init__(self, url: str, file: pq.ParquetFile, column: str) -> None:
        self.url = url
        self._file = file
        self._column = column
        self._loaded: _RowGroup | None = None

    @classmethod
    def open(cls, storage: Storage, url: str, column: str) -> "TableImages":
        """Open a file.

        Raises:
            SourceUnavailable: It cannot be read.
        """
        try:
            return cls(url, pq.ParquetFile(storage.open(url)), column)
        except (ConfigError, pa.ArrowException, OSError, ValueError) as error:
            raise SourceUnavailable(f"The table {shown_url(url)} cannot be read.") from error

    def image(self, row: int) -> bytes:
        """Return the image of a row.

        Raises:
            InvalidRequest: The row has no image.
            SourceUnavailable: The row cannot be read.
        """
        group = self._loaded
        if group is None or not group.start <= row < group.stop:
            group = self._loaded = self._load(row)
        value = group.images[row - group.start].as_py()
        data = value["bytes"] if isinstance(value, dict) else value
        if data is None:
            raise InvalidRequest("The row holds no image.")
        if not isinstance(data, bytes):
            raise InvalidRequest("The row holds something else than the bytes of an image.")
        return data

    def _load(self, row: int) -> _RowGroup:
        """Read the row group of a row."""
        number, start, stop = self._place_of(row)
        nbytes = _column_bytes(self._file.metadata.row_group(number), self._column)
        if nbytes > MAX_ROW_GROUP_BYTES:
            raise SourceUnavailable(
                f"A row group of the table has {nbytes:,} bytes; "
                f"at most {MAX_ROW_GROUP_BYTES:,} are read."
            )
        try:
            table = self._file.read_row_group(number, columns=[self._column])
            return _RowGroup(start, stop, table[self._column])
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise SourceUnavailable("The table cannot be read.") from error

    def _place_of(self, row: int) -> tuple[int, int, int]:
        """Return the number of a row's group, its first row and the row after its last one."""
        start = 0
        for number in range(self._file.num_row_groups):
            stop = start + self._file.metadata.row_group(number).num_rows
            if row < stop:
                return number, start, stop
            start = stop
        raise SourceUnavailable("The table has fewer rows than when it was listed.")


def _column_bytes(group: Any, column: str) -> int:
    """Return the unpacked size of one column of a row group, with all parts of a struct."""
    parts = (group.column(i) for i in range(group.num_columns))
    return sum(
        part.total_uncompressed_size
        for part in parts
        if part.path_in_schema.split(".")[0] == column
    )
