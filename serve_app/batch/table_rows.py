"""Rows of tables that people wrote: their names, what is wrong with some of them, and columns whose
parts have different types.
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa

ROWS = 4096
"""Maximum number of rows in one part of a table."""
MAX_COLUMNS = 10_000


class Rows(NamedTuple):
    """Some rows of a file.

    Attributes:
        table: The rows; all values of a malformed row are null.
        malformed: Line numbers of rows that cannot be read, by their place in `table`.
    """

    table: pa.Table
    malformed: dict[int, int]


def check_names(names: Sequence[str]) -> None:
    """Check the names of a table's columns.

    Raises:
        ValueError: There are too many, or two are equal.
    """
    if len(names) > MAX_COLUMNS:
        raise ValueError(f"it has {len(names):,} columns; at most {MAX_COLUMNS:,} are read")
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f"it has several columns named {json.dumps(twice)}; rename one of them")


def join_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """Return tables one below the other; a column that has different types in them becomes text."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        names = dict.fromkeys(name for table in tables for name in table.column_names)
        different = [
            name
            for name in names
            if not _fits(
                [table.schema.field(name) for table in tables if name in table.column_names]
            )
        ]
        return pa.concat_tables(
            [_with_text(table, different) for table in tables], promote_options="permissive"
        )


def text_column(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Return a column as text: lists, structs and maps as JSON, other values as Arrow writes them,
    null as null.

    A date is `2024-01-01`, and a float without a fraction `1`.
    """
    if pa.types.is_string(column.type):
        return column
    if not pa.types.is_nested(column.type) and not isinstance(column.type, pa.BaseExtensionType):
        try:
            return column.cast(pa.string())
        except pa.ArrowException:  # bytes that are not UTF-8, or a type without a cast
            pass
    return pa.array([json_or_text(value) for value in column.to_pylist()], pa.string())


def json_or_text(value: Any) -> str | None:
    """Return a value as text: a string as it is, a value of JSON as JSON, another one as `str`
    gives it.
    """
    if value is None:
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    is_json = isinstance(value, bool | int | float | list | tuple | dict)
    text = json.dumps(value, ensure_ascii=False, default=str) if is_json else str(value)
    return text.encode("utf-8", "backslashreplace").decode()


def _fits(fields: Sequence[pa.Field]) -> bool:
    try:
        pa.unify_schemas([pa.schema([field]) for field in fields], promote_options="permissive")
    except pa.ArrowException:
        return False
    return True


def _with_text(table: pa.Table, names: Sequence[str]) -> pa.Table:
    for name in names:
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, text_column(table[name]))
    return table
