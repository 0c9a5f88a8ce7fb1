"""Converts error responses and httpx's exceptions into the exceptions of `serve_app.errors`.

The `code` in the body of an error response determines the exception. If the code is unknown, or the
body is not one of siglip-serve, the status determines it.
"""

from dataclasses import dataclass
from typing import Any

import httpx

from serve_app import errors
from serve_app.client.retries import RETRIED_STATUSES, parse_retry_after
from serve_app.errors import TaggerError
from serve_app.terminal.printable import printable
from serve_app.untrusted import bounded_http

ERRORS: dict[str, type[TaggerError]] = {
    cls.code: cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, TaggerError)
}
"""Class of each error code."""
BY_STATUS: dict[int, type[TaggerError]] = {
    408: errors.DeadlineExceeded,  # Serve responds so when it cancels a request
    413: errors.PayloadTooLarge,
    415: errors.UnsupportedImage,
    429: errors.Overloaded,
    502: errors.Unavailable,
    503: errors.Unavailable,
    504: errors.DeadlineExceeded,
}
"""Classes of responses without a known code. Any other status is a `ServiceError` from 500 on, and
a `RequestError` below."""
HTTPX_ERRORS = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, httpx.CookieConflict)
"""Base classes of all exceptions that httpx raises."""
MAX_MESSAGE_CHARACTERS = 2_000
MAX_CODE_CHARACTERS = 100
"""Maximum length of an error code or a content type that an error message repeats."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a try failed.

    Attributes:
        error: The exception to raise if there is no further try.
        is_temporary: Whether the same request may succeed in a moment.
        retry_after_s: Seconds of the response's `Retry-After`, if it has one.
    """

    error: TaggerError
    is_temporary: bool = False
    retry_after_s: float | None = None


_FROM_HTTPX: dict[type[Exception], tuple[type[TaggerError], str, bool]] = {
    httpx.ConnectTimeout: (
        errors.Unavailable,
        "Cannot connect to {url} in time; is the service running there?",
        True,
    ),
    httpx.ConnectError: (
        errors.Unavailable,
        "Cannot connect to {url}; is the service running there?",
        True,
    ),
    httpx.PoolTimeout: (errors.Overloaded, "No connection to {url} became free in time.", True),
    httpx.TimeoutException: (errors.DeadlineExceeded, "{url} did not respond in time.", False),
    httpx.NetworkError: (errors.Unavailable, "The connection to {url} broke.", True),
    httpx.RemoteProtocolError: (
        errors.Unavailable,
        "The connection to {url} broke, or the server does not speak HTTP.",
        True,
    ),
    httpx.ProxyError: (
        errors.Unavailable,
        "The proxy for {url} refused the connection.",
        True,
    ),
    httpx.UnsupportedProtocol: (
        errors.InvalidRequest,
        "{url} is not a valid address; it must begin with http:// or https://.",
        False,
    ),
    httpx.LocalProtocolError: (
        errors.InvalidRequest,
        "The request to {url} cannot be sent as HTTP.",
        False,
    ),
    httpx.InvalidURL: (errors.InvalidRequest, "{url} is not a valid address.", False),
    httpx.DecodingError: (
        errors.ServiceError,
        "The response from {url} cannot be decompressed.",
        False,
    ),
    httpx.TooManyRedirects: (errors.ServiceError, "{url} redirects too many times.", False),
    bounded_http.ResponseTooLarge: (
        errors.ServiceError,
        "The response from {url} is larger than "
        f"{bounded_http.MAX_RESPONSE_BYTES // 2**20} MiB; send fewer inputs in one request.",
        False,
    ),
    bounded_http.ResponseTooSlow: (
        errors.DeadlineExceeded,
        "The response from {url} did not end in time.",
        False,
    ),
    bounded_http.ResponseNotReadable: (
        errors.ServiceError,
        "The response from {url} cannot be decompressed.",
        False,
    ),
    httpx.HTTPError: (errors.ServiceError, "The response from {url} cannot be read.", False),
    httpx.StreamError: (errors.ServiceError, "The response from {url} cannot be read.", False),
    httpx.CookieConflict: (errors.ServiceError, "The response from {url} cannot be read.", False),
}
"""Class, message and whether the failure is temporary, for each exception of httpx."""


def failure_of_exception(exception: Exception, url: str) -> Failure:
    """Return the failure for an exception of httpx, by its nearest base class in the table."""
    cls, message, is_temporary = next(
        _FROM_HTTPX[base] for base in type(exception).__mro__ if base in _FROM_HTTPX
    )
    error = cls(message.format(url=url))
    error.__cause__ = exception
    return Failure(error, is_temporary)


def failure_of_response(response: httpx.Response, url: str) -> Failure:
    """Return the failure for an error response."""
    status = response.status_code
    error = _error_of_body(response) or _error_of_status(response, url)
    error.status = status
    return Failure(error, status in RETRIED_STATUSES, parse_retry_after(response.headers))


def error_of_entry(entry: Any, status: int | None = None) -> TaggerError | None:
    """Return the error of `{"error": {"code", "message"}}`, or None if the entry has none."""
    content = entry.get("error") if isinstance(entry, dict) else None
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("code"), str)
        or not isinstance(content.get("message"), str)
    ):
        return None
    # a hostile server's escape sequences must not reach a terminal or a log through an exception
    code = printable(content["code"][:MAX_CODE_CHARACTERS])
    message = printable(content["message"][:MAX_MESSAGE_CHARACTERS])
    error = ERRORS.get(code, _class_of_status(status or 500))(message)
    error.code = code  # a newer service may send a code that this client does not know
    return error


def foreign_response_error(response: httpx.Response, url: str) -> TaggerError:
    """Return the error for a response that is not siglip-serve's, such as a gateway's page."""
    status = response.status_code
    content_type = response.headers.get("content-type", "").partition(";")[0].strip()
    described = printable(content_type[:MAX_CODE_CHARACTERS]) or "no content type"
    cls = errors.ServiceError if response.is_success else _class_of_status(status)
    error = cls(
        f"{url} responded with status {status} and {described}, which is not a response of "
        "siglip-serve; check whether the address belongs to another service or a gateway."
    )
    error.status = status
    return error


def _error_of_body(response: httpx.Response) -> TaggerError | None:
    try:
        return error_of_entry(response.json(), response.status_code)
    except (ValueError, RecursionError):
        return None


def _error_of_status(response: httpx.Response, url: str) -> TaggerError:
    status = response.status_code
    if status in (401, 403):
        return errors.Unauthorized(f"{url} rejected the API key, or requires one ({status}).")
    if 300 <= status < 400:
        return errors.RequestError(
            f"{url} redirects to another address ({status}); use that address instead."
        )
    return foreign_response_error(response, url)


def _class_of_status(status: int) -> type[TaggerError]:
    return BY_STATUS.get(status, errors.RequestError if status < 500 else errors.ServiceError)
