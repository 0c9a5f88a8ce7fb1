"""Rows of tables that people wrote: names of columns, malformed rows, and mixed types."""

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
    """Return tables as one; a column that has different types in them becomes text."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        fields: dict[str, list[pa.Field]] = {}
        for table in tables:
            for field in table.schema:
                fields.setdefault(field.name, []).append(field)
        mixed = [name for name, same_name in fields.items() if not _fit_together(same_name)]
        with_text = [_with_text(table, mixed) for table in tables]
        return pa.concat_tables(with_text, promote_options="permissive")


def text_column(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Return a column as text.

    Lists, structs and maps become JSON, null stays null, and Arrow writes the other values: a date
    as `2024-01-01`, a float without a fraction as `1`.
    """
    if pa.types.is_string(column.type):
        return column
    is_flat = not pa.types.is_nested(column.type)
    if is_flat and not isinstance(column.type, pa.BaseExtensionType):
        text = _cast_to_text(column)
        if text is not None:
            return text
    return pa.array([json_or_text(value) for value in column.to_pylist()], pa.string())


def json_or_text(value: Any) -> str | None:
    """Return a value as text.

    A string stays as it is, another value of JSON becomes JSON, and `str` converts the rest.
    """
    if value is None:
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    is_json = isinstance(value, bool | int | float | list | tuple | dict)
    text = json.dumps(value, ensure_ascii=False, default=str) if is_json else str(value)
    return text.encode("utf-8", "backslashreplace").decode()


def _cast_to_text(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array | None:
    """Return a column as Arrow writes it; None if it cannot.

    It cannot write bytes that are not UTF-8, and types without a cast to text.
    """
    try:
        return column.cast(pa.string())
    except pa.ArrowException:
        return None


def _fit_together(fields: Sequence[pa.Field]) -> bool:
    """Return whether some type can hold the values of all fields."""
    try:
        pa.unify_schemas([pa.schema([field]) for field in fields], promote_options="permissive")
    except pa.ArrowException:
        return False
    return True


def _with_text(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return a table in which some columns are text."""
    for name in names:
        if name in table.column_names:
            i = table.column_names.index(name)
            table = table.set_column(i, name, text_column(table[name]))
    return table
