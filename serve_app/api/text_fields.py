"""Fields whose values are texts, in a query string or a form, and lists written as one text.

Not here: the fields themselves (`parameters.py`).
"""

import functools
import json
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request

from serve_app.api.long_texts import LONG_TEXT_BYTES, LongText
from serve_app.errors import InvalidRequest

MAX_TEXT_ITEMS = 4_000
"""Items of a list written as one text, empty ones included; counted before the text is split."""
MAX_QUERY_FIELDS = 2_000
"""Fields of a query string; `labels` may be repeated for each label."""
NEVER_EMPTY = frozenset({"labels", "candidate_labels"})
"""Fields whose empty value is refused.

The service's own labels would be a surprising replacement.
"""
_NO_ARRAY = (
    'a text that begins with [ must be a JSON array of strings, such as ["red","blue"]; '
    "a label that begins with [ can be sent as an item of such an array"
)


def split_list(value: Any) -> Any:
    """Return the items of a list that is written as one text; other values stay as they are.

    The text is either a JSON array of strings or has commas between its items. Empty items between
    commas are dropped.

    Raises:
        ValueError: The text begins with `[` and is not a JSON array of strings, or has too many
            items.
    """
    if not isinstance(value, str | LongText):
        return value
    items = _array_items(value)
    if items is not None:
        return items
    text = str(value)
    if text.count(",") >= MAX_TEXT_ITEMS:
        raise ValueError(f"a text with commas holds at most {MAX_TEXT_ITEMS:,} items; send fewer")
    return [part.strip() for part in text.split(",") if part.strip()]


def one_or_array(value: Any) -> Any:
    """Return a list for a text: the items of a JSON array, or the text as its only item.

    Other values stay as they are. For prompt templates, which are sentences and may contain commas.

    Raises:
        ValueError: The text begins with `[` and is not a JSON array of strings, or has too many
            items.
    """
    if not isinstance(value, str | LongText):
        return value
    items = _array_items(value)
    return [value] if items is None else items


def query_pairs(request: Request) -> list[tuple[str, str]]:
    """Return the names and values of a query string, in order.

    Raises:
        InvalidRequest: It has too many fields.
    """
    query: bytes = request.scope.get("query_string", b"")
    if not query:
        return []
    if query.count(b"&") >= MAX_QUERY_FIELDS:
        raise InvalidRequest(
            f"The query string has more than {MAX_QUERY_FIELDS:,} fields; send labels in the body."
        )
    return request.query_params.multi_items()


def text_fields(pairs: Iterable[tuple[str, str]], model: type[BaseModel]) -> dict[str, Any]:
    """Return the fields of a query string or a form in the shape that a JSON body has.

    A list that is sent once stays a text, which the model splits. A list whose field is repeated
    has one item for each value that is not empty, taken as it is: commas within it do not split it.
    Of other repeated fields the last value counts. An empty value means the same as leaving the
    field out, except for labels.

    Args:
        pairs: Names and values, in order.
        model: What the fields are; it decides which of them are lists.
    """
    is_list = _known_fields(model)
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    fields: dict[str, Any] = {}
    for name, texts in values.items():
        if is_list.get(name) and len(texts) > 1:
            filled = [
                text for text in texts if text.strip()
            ]  # browsers send fields that were left empty, too
            fields[name] = filled or texts[-1]
        elif texts[-1].strip() or name in NEVER_EMPTY or name not in is_list:
            fields[name] = texts[-1]
    return fields


def _array_items(text: str | LongText) -> list[str] | None:
    """Return the items of a JSON array of strings; None if the text does not begin with `[`."""
    if isinstance(text, LongText):
        raise ValueError(
            f"a text of more than {LONG_TEXT_BYTES:,} bytes is not accepted; send a list"
        )
    if not text.lstrip().startswith("["):
        return None
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(_NO_ARRAY) from error
    if not all(isinstance(item, str) for item in items):
        raise ValueError(_NO_ARRAY)
    if len(items) > MAX_TEXT_ITEMS:
        raise ValueError(
            f"a JSON array in a text holds at most {MAX_TEXT_ITEMS:,} items; send fewer"
        )
    return list(items)


@functools.cache
def _known_fields(model: type[BaseModel]) -> dict[str, bool]:
    """Return the names of a model's fields as clients write them, and whether each is a list."""
    properties: dict[str, Any] = model.model_json_schema()["properties"]
    return {
        name: any(kind.get("type") == "array" for kind in (schema, *schema.get("anyOf", ())))
        for name, schema in properties.items()
    }
