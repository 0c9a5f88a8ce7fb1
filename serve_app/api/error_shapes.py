"""The JSON of an error: this service's own shape, and the type of every dialect's.

Not here: how an error becomes a response (`error_responses.py`).
"""

from collections.abc import Callable
from typing import Any

from serve_app.errors import TaggerError

ErrorShape = Callable[[TaggerError, int], dict[str, Any]]
"""Turns an error and its status into the JSON that the clients of a dialect expect."""


def error_body(code: str, message: str) -> dict[str, Any]:
    """Return the JSON of an error in this service's own shape."""
    return {"error": {"code": code, "message": message}}


def own_shape(error: TaggerError, status: int) -> dict[str, Any]:
    """Return an error in this service's own shape."""
    return error_body(error.code, error.message)
