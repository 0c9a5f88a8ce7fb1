"""The HTTP status of each error: one table, looked up along the class's bases."""

import math

from serve_app import errors

STATUSES: dict[type[errors.TaggerError], int] = {
    errors.TaggerError: 500,
    errors.ConfigError: 500,
    errors.RequestError: 400,
    errors.InvalidRequest: 400,
    errors.Unauthorized: 401,
    errors.RequestTimeout: 408,
    errors.PayloadTooLarge: 413,
    errors.UnsupportedImage: 415,
    errors.ImageTooLarge: 422,
    errors.InvalidImage: 422,
    errors.UnknownVocabulary: 404,
    errors.SourceUnavailable: 422,
    errors.ServiceError: 500,
    errors.Overloaded: 429,
    errors.Unavailable: 503,
    errors.DeadlineExceeded: 504,
    errors.InferenceFailed: 500,
}
RETRY_AFTER_S = 1
"""`Retry-After` of 429 and 503 if it is not known when there will be room, and the least value."""
MAX_RETRY_AFTER_S = 60
"""Largest `Retry-After`: the load may have changed by then."""


def headers_of(error: errors.TaggerError, status: int) -> dict[str, str]:
    """Return the headers of an error's response: when to retry, or which credentials to send.

    Args:
        error: The error.
        status: The HTTP status with which it is answered.
    """
    if status in (429, 503):
        seconds = error.retry_after_s if isinstance(error, errors.Overloaded) else None
        return {"Retry-After": str(_whole_seconds(seconds))}
    if status == 401:
        return {"WWW-Authenticate": "Bearer"}
    return {}


def _whole_seconds(seconds: float | None) -> int:
    if seconds is None:
        return RETRY_AFTER_S
    return math.ceil(min(max(seconds, RETRY_AFTER_S), MAX_RETRY_AFTER_S))


def status_of(error: errors.TaggerError) -> int:
    """Return the HTTP status of an error: its class's, or that of the nearest base in the table."""
    return next(STATUSES[base] for base in type(error).__mro__ if base in STATUSES)
