"""How the inputs of a job are cut into chunks, and which folder of the output each goes to."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from serve_app.batch.input_tables import DAMAGED, OWN
from serve_app.batch.table_rows import join_tables, text_column
from serve_app.errors import ConfigError

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
"""Folder name of rows without a value. Source: Apache Hive."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How inputs become chunks.

    Attributes:
        size: Number of inputs in a chunk.
        partition_by: Column whose values must not share a chunk.
        limit: Maximum number of inputs; None for all.
    """

    size: int
    partition_by: str | None = None
    limit: int | None = None

    def chunks(self, tables: Iterable[pa.Table]) -> Iterator[tuple[pa.Table, str]]:
        """Yield the inputs of each chunk, and the folder of the output that it goes to."""
        waiting: dict[str, list[pa.Table]] = {}
        for table, part in self._parts(self._limited(tables)):
            rows = join_tables([*waiting.pop(part, []), table]).combine_chunks()
            while len(rows) >= self.size:
                yield rows.slice(0, self.size), part
                rows = rows.slice(self.size)
            if len(rows):
                waiting[part] = [rows]
        for part, rest in sorted(waiting.items()):
            yield rest[0], part

    def _limited(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield tables until there are `limit` inputs; later tables are not read."""
        if self.limit is None:
            yield from tables
            return
        left = self.limit
        for table in tables:
            yield table.slice(0, left)
            left -= min(left, len(table))
            if left == 0:
                return

    def _parts(self, tables: Iterable[pa.Table]) -> Iterator[tuple[pa.Table, str]]:
        """Yield tables with the part of the output that they belong to."""
        if self.partition_by is None:
            for table in tables:
                yield table, ""
            return

        without_column: pa.Table | None = None
        has_column = False
        for table in tables:
            if self.partition_by in table.column_names:
                has_column = True
                yield from _divided(table, self.partition_by)
                continue
            if without_column is None and not _is_damage(table):
                without_column = table
            yield table, _part_of(self.partition_by, None)

        if without_column is not None and not has_column:
            raise ConfigError(
                f"--partition-by {self.partition_by}: the inputs have no such column; "
                f"they have {', '.join(without_column.column_names)}."
            )


def _divided(table: pa.Table, column: str) -> Iterator[tuple[pa.Table, str]]:
    """Yield the rows of a table by the values of a column.

    As in Hive, rows without a value and rows with an empty text share a part.
    """
    text = text_column(table[column])
    values = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    for value in sorted(pc.unique(values).to_pylist(), key=str):
        mask = pc.is_null(values) if value is None else pc.equal(values, value)
        yield table.filter(mask), _part_of(column, value)


def _is_damage(table: pa.Table) -> bool:
    """Return whether the inputs stand for a damaged file, which has no columns of its own."""
    return (
        table.column_names == OWN.names
        and len(table) == 1
        and table["offset"][0].as_py() == DAMAGED
    )


def _part_of(column: str, value: str | None) -> str:
    return f"{column}={NO_VALUE if value is None else _quoted(value)}"


def _quoted(value: str) -> str:
    """Return a value as Hive writes it in the name of a folder."""
    if not value:
        return "%00"
    return "".join(
        c if c.isalnum() or c in "-_. " else "".join(f"%{byte:02X}" for byte in c.encode())
        for c in value
    )
