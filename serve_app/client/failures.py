"""The border where answers and httpx's exceptions become the exceptions of `serve_app.errors`.

An answer is read by its `code`; a code that is not known here, or a body that is none of ours, by
its status.
"""

from dataclasses import dataclass
from typing import Any

import httpx

from serve_app import errors
from serve_app.client.retries import RETRIED_STATUSES, told_wait_s
from serve_app.errors import TaggerError
from serve_app.terminal.printable import printable
from serve_app.untrusted import bounded_http

ERRORS: dict[str, type[TaggerError]] = {
    cls.code: cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, TaggerError)
}
"""Every code and its class."""
BY_STATUS: dict[int, type[TaggerError]] = {
    408: errors.DeadlineExceeded,  # how Serve cuts a request off
    413: errors.PayloadTooLarge,
    415: errors.UnsupportedImage,
    429: errors.Overloaded,
    502: errors.Unavailable,
    503: errors.Unavailable,
    504: errors.DeadlineExceeded,
}
"""For answers without a known code; others of 500 and more are `ServiceError`, the rest
`RequestError`."""
FOREIGN = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, httpx.CookieConflict)
"""What httpx raises."""
MAX_MESSAGE_CHARACTERS = 2_000
MAX_CODE_CHARACTERS = 100
"""Of an error's code, and of a content type, where it is repeated in a message."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a try failed.

    Attributes:
        error: What is raised if it is the last one.
        passing: Whether the same request may succeed in a moment.
        told_s: Seconds that the service wants to be left alone.
    """

    error: TaggerError
    passing: bool = False
    told_s: float | None = None


_FROM_HTTPX: dict[type[Exception], tuple[type[TaggerError], str, bool]] = {
    httpx.ConnectTimeout: (
        errors.Unavailable,
        "{at} does not answer: no connection in time.",
        True,
    ),
    httpx.ConnectError: (
        errors.Unavailable,
        "{at} does not answer; is the service running there?",
        True,
    ),
    httpx.PoolTimeout: (errors.Overloaded, "No connection to {at} became free in time.", True),
    httpx.TimeoutException: (errors.DeadlineExceeded, "{at} took too long to answer.", False),
    httpx.NetworkError: (errors.Unavailable, "The connection to {at} broke.", True),
    httpx.RemoteProtocolError: (
        errors.Unavailable,
        "The connection to {at} broke, or it does not speak HTTP.",
        True,
    ),
    httpx.ProxyError: (errors.Unavailable, "The proxy before {at} refuses the connection.", True),
    httpx.UnsupportedProtocol: (
        errors.InvalidRequest,
        "{at} is not an address that begins with http:// or https://.",
        False,
    ),
    httpx.LocalProtocolError: (
        errors.InvalidRequest,
        "The request to {at} cannot be sent as HTTP.",
        False,
    ),
    httpx.InvalidURL: (errors.InvalidRequest, "{at} is not an address.", False),
    httpx.DecodingError: (errors.ServiceError, "The answer of {at} cannot be decompressed.", False),
    httpx.TooManyRedirects: (errors.ServiceError, "{at} redirects without end.", False),
    bounded_http.ResponseTooLarge: (
        errors.ServiceError,
        f"The response of {{at}} is larger than {bounded_http.MAX_RESPONSE_BYTES // 2**20} MiB; "
        "ask for less at once.",
        False,
    ),
    bounded_http.ResponseTooSlow: (
        errors.DeadlineExceeded,
        "The response of {at} did not end in time.",
        False,
    ),
    bounded_http.ResponseNotReadable: (
        errors.ServiceError,
        "The response of {at} cannot be unpacked.",
        False,
    ),
    httpx.HTTPError: (errors.ServiceError, "The answer of {at} cannot be read.", False),
    httpx.StreamError: (errors.ServiceError, "The answer of {at} cannot be read.", False),
    httpx.CookieConflict: (errors.ServiceError, "The answer of {at} cannot be read.", False),
}


def of_exception(foreign: Exception, at: str) -> Failure:
    """Return what an exception of httpx means: that of its class, or of its nearest base in the
    table.
    """
    cls, sentence, passing = next(
        _FROM_HTTPX[base] for base in type(foreign).__mro__ if base in _FROM_HTTPX
    )
    error = cls(sentence.format(at=at))
    error.__cause__ = foreign
    return Failure(error, passing)


def of_response(response: httpx.Response, at: str) -> Failure:
    """Return what an answer that is no success means."""
    status = response.status_code
    error = _of_body(response) or _of_status(response, at)
    error.status = status
    return Failure(error, status in RETRIED_STATUSES, told_wait_s(response.headers))


def of_entry(entry: Any, status: int | None = None) -> TaggerError | None:
    """Return the error that `{"error": {"code", "message"}}` means, or None if it is none."""
    told = entry.get("error") if isinstance(entry, dict) else None
    if (
        not isinstance(told, dict)
        or not isinstance(told.get("code"), str)
        or not isinstance(told.get("message"), str)
    ):
        return None
    # a hostile server's escape sequences must not reach a terminal or a log by way of an exception
    code = printable(told["code"][:MAX_CODE_CHARACTERS])
    message = printable(told["message"][:MAX_MESSAGE_CHARACTERS])
    error = ERRORS.get(code, _class_of(status or 500))(message)
    error.code = code  # also where it is newer than this client
    return error


def not_ours(response: httpx.Response, at: str) -> TaggerError:
    """Return the error for an answer that siglip-serve would not give, such as a gateway's page."""
    status = response.status_code
    named = response.headers.get("content-type", "").partition(";")[0].strip()
    kind = printable(named[:MAX_CODE_CHARACTERS]) or "no content type"
    cls = errors.ServiceError if response.is_success else _class_of(status)
    error = cls(
        f"{at} answers {status} with {kind}, which is not siglip-serve's: another service is "
        "there, or a gateway before it."
    )
    error.status = status
    return error


def _of_body(response: httpx.Response) -> TaggerError | None:
    try:
        return of_entry(response.json(), response.status_code)
    except (ValueError, RecursionError):
        return None


def _of_status(response: httpx.Response, at: str) -> TaggerError:
    status = response.status_code
    if status in (401, 403):
        return errors.Unauthorized(f"{at} refuses the API key, or wants one ({status}).")
    if 300 <= status < 400:
        return errors.RequestError(f"{at} redirects to another address ({status}); give that one.")
    return not_ours(response, at)


def _class_of(status: int) -> type[TaggerError]:
    return BY_STATUS.get(status, errors.RequestError if status < 500 else errors.ServiceError)
