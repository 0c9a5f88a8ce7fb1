"""The HTTP status of each error: one table, looked up along the class's bases."""

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
"""Sent as `Retry-After` with 429 and 503."""


def headers_of(status: int) -> dict[str, str]:
    """Return the headers of a status: when to retry, or which credentials to send."""
    if status in (429, 503):
        return {"Retry-After": str(RETRY_AFTER_S)}
    if status == 401:
        return {"WWW-Authenticate": "Bearer"}
    return {}


def status_of(error: errors.TaggerError) -> int:
    """Return the HTTP status of an error: its class's, or that of the nearest base in the table."""
    return next(STATUSES[base] for base in type(error).__mro__ if base in STATUSES)
