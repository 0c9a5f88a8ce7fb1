"""Treats null in a file as the default, as if the key were missing.

Keys whose type includes None keep null, because it is a valid value there, such as
`tag_banks: null` for no storage. Unknown keys keep it too, so that they are refused.
"""

from functools import cache
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel, model_validator


def without_nulls(model: type[BaseModel], data: Any) -> Any:
    """Return the content of a block and its nested blocks without nulls that mean the default.

    A validator cannot do this for strict models: after a validator, they treat JSON lists as Python
    lists, which are not valid tuples.
    """
    if not isinstance(data, dict):
        return data
    kept: dict[Any, Any] = {}
    for key, value in data.items():
        known = model.model_fields.get(key) if isinstance(key, str) else None
        if known is None:
            kept[key] = value
        elif value is not None or key in _keys_with_null(model):
            kept[key] = value
            block = known.annotation
            if isinstance(block, type) and issubclass(block, BaseModel):
                kept[key] = without_nulls(block, value)
    return kept


@cache
def _keys_with_null(model: type[BaseModel]) -> frozenset[str]:
    """Return the keys of a block for which null is a valid value."""
    return frozenset(
        name for name, field in model.model_fields.items() if NoneType in get_args(field.annotation)
    )


class NullIsDefault(BaseModel):
    """Base of blocks that are not strict: null means the default of a key."""

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, data: Any) -> Any:
        return without_nulls(cls, data)
