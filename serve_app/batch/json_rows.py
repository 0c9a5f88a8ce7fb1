"""Reads the rows of an untrusted JSON Lines file.

The values of a key may have any types. A column has the type that fits all of them, over the whole
file. If there is no such type, it is text: strings as they are, other values as JSON. A line that
is not a JSON object affects no other line.

JSON has no numbers that are not finite, but Python's `json` and others write them. `NaN`,
`Infinity` and `-Infinity` are read as null; a number too large for a double, such as `1e999`, is
read as text.
"""

import io
import json
import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from serve_app.batch.table_rows import MAX_COLUMNS, ROWS, Rows, json_or_text

MAX_JSON_DEPTH = 64
"""Maximum nesting of lists and objects in one line.

pyarrow crashes the process at some 20,000 levels.
"""
_FAILURES = (pa.ArrowException, OverflowError, TypeError, ValueError)

Record = tuple[int, dict[str, Any] | None]
"""The number of a line, and its object; None if it has none."""


def json_rows(data: bytes) -> Iterator[Rows]:
    """Yield the rows of a JSON Lines file.

    Args:
        data: The whole file; it is parsed two or three times, so that only some rows are held as
            Python objects.

    Raises:
        ValueError: It has no object at all, too many different keys, or ends in the middle of a
            line.
    """
    types = _types_of(data)
    is_damaged = False
    is_cut = not data.endswith((b"\n", b"\r"))
    last = data.count(b"\n") + 1
    for records in _pages(data):
        if is_cut and records[-1] == (last, None):
            records.pop()
            is_damaged = True
        rows = [row or {} for _, row in records]
        columns = [_column([row.get(name) for row in rows], kind) for name, kind in types.items()]
        malformed = {i: number for i, (number, row) in enumerate(records) if row is None}
        yield Rows(pa.table(columns, names=[_unicode(name) for name in types]), malformed)
    if is_damaged:
        raise ValueError(f"it is cut off in line {last:,}")


def _pages(data: bytes) -> Iterator[list[Record]]:
    page: list[Record] = []
    for number, line in enumerate(io.BytesIO(data), 1):
        if not line.strip():
            continue
        page.append((number, _object_in(line)))
        if len(page) == ROWS:
            yield page
            page = []
    if page:
        yield page


def _object_in(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line, parse_constant=lambda _: None, parse_float=_number)
    except (RecursionError, ValueError):
        return None
    if not isinstance(row, dict):
        return None
    if line.count(b"[") + line.count(b"{") > MAX_JSON_DEPTH and _depth(row) > MAX_JSON_DEPTH:
        return None
    return row


def _number(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text


def _types_of(data: bytes) -> dict[str, pa.DataType | None]:
    """Return the type of every key; None means text, which can hold any value."""
    types: dict[str, pa.DataType | None] = {}
    widened: set[str] = set()
    objects = 0
    for records in _pages(data):
        rows = [row for _, row in records if row is not None]
        objects += len(rows)
        for name in dict.fromkeys(key for row in rows for key in row):
            kind = _type_of([row.get(name) for row in rows])
            if name in types and types[name] != kind:
                kind = _common(types[name], kind)
                widened.add(name)
            types[name] = kind
        if len(types) > MAX_COLUMNS:
            raise ValueError(f"its objects have more than {MAX_COLUMNS:,} different keys")
    if data.strip() and not objects:
        raise ValueError("not one of its lines is a JSON object")
    types |= dict.fromkeys(_not_convertible(data, {name: types[name] for name in widened}))
    return {
        name: pa.string() if kind is not None and pa.types.is_null(kind) else kind
        for name, kind in types.items()
    }


def _not_convertible(data: bytes, types: dict[str, pa.DataType | None]) -> set[str]:
    """Return the keys with values that their type cannot hold.

    An example is an integer above 2**53 among doubles.
    """
    left = {name: kind for name, kind in types.items() if kind is not None}
    failed: set[str] = set()
    for records in _pages(data) if left else ():
        rows = [row or {} for _, row in records]
        for name, kind in left.items():
            try:
                pa.array([row.get(name) for row in rows], kind)
            except _FAILURES:
                failed.add(name)
    return failed


def _type_of(values: list[Any]) -> pa.DataType | None:
    try:
        kind = pa.array(values).type
    except _FAILURES:
        return None
    return kind if _is_storable(kind) else None


def _common(one: pa.DataType | None, other: pa.DataType | None) -> pa.DataType | None:
    if one is None or other is None:
        return None
    try:
        schemas = [pa.schema([("x", kind)]) for kind in (one, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return None


def _is_storable(kind: pa.DataType) -> bool:
    """Return whether Parquet can store a type: a struct needs a field."""
    if pa.types.is_struct(kind):
        fields = [kind.field(i).type for i in range(kind.num_fields)]
        return bool(fields) and all(map(_is_storable, fields))
    return _is_storable(kind.value_type) if pa.types.is_list(kind) else True


def _column(values: list[Any], kind: pa.DataType | None) -> pa.Array:
    """Return a column of a type; of text if that is None or cannot hold the values."""
    column = None if kind is None else _typed_column(values, kind)
    if column is not None:
        return column
    texts = [json_or_text(value) for value in values]
    return pa.array(texts, pa.string())


def _typed_column(values: list[Any], kind: pa.DataType) -> pa.Array | None:
    """Return a column of a type; None if that cannot hold the values.

    JSON can contain half of a surrogate pair, Arrow cannot.
    """
    try:
        return pa.array(values, kind)
    except _FAILURES:
        return None


def _unicode(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _depth(row: dict[str, Any]) -> int:
    """Return the nesting depth of an object, without recursion."""
    deepest = 0
    waiting: list[tuple[dict[str, Any] | list[Any], int]] = [(row, 1)]
    while waiting:
        container, depth = waiting.pop()
        deepest = max(deepest, depth)
        parts = container.values() if isinstance(container, dict) else container
        waiting += [(part, depth + 1) for part in parts if isinstance(part, dict | list)]
    return deepest
