"""The one place where an error becomes a response: its status, its code and its shape.

Not here: which status an error has (`statuses.py`), which route a request has (`routes.py`).
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.error_shapes import ErrorShape, own_shape
from serve_app.api.routes import RouteTable
from serve_app.api.statuses import headers_of, status_of
from serve_app.errors import InvalidRequest, RequestError, ServiceError, TaggerError
from serve_app.telemetry.record import note_code

logger = logging.getLogger(__name__)


def error_response(
    error: TaggerError,
    shape: ErrorShape = own_shape,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Return the response to an error, and note its code in the request's record.

    Args:
        error: The error.
        shape: The JSON that the client expects.
        status: The HTTP status; that of the error's class by default.
        headers: More headers.
    """
    note_code(error.code)
    if status is None:
        status = status_of(error)
    own = headers_of(error, status)
    return JSONResponse(shape(error, status), status, {**own, **(headers or {})})


class ErrorResponses:
    """Middleware that answers every error raised inside it, in the shape of the request's route.

    An error after the response has begun is logged and raised again, so that the server closes the
    connection.
    """

    def __init__(self, app: ASGIApp, routes: RouteTable) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        has_begun = False

        async def send_noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except Exception as error:
            if not has_begun:
                await self._response(scope, error)(scope, receive, send)
                return
            if not isinstance(error, OSError):  # an `OSError` means that the connection broke
                _log(scope)
            raise

    def _response(self, scope: Scope, error: Exception) -> JSONResponse:
        refusal = self._refusal(scope, error)
        shape = self._routes.error_shape(scope)
        return error_response(refusal.error, shape, refusal.status, refusal.headers)

    def _refusal(self, scope: Scope, error: Exception) -> "_Refusal":
        if isinstance(error, TaggerError):
            return _Refusal(error)
        if isinstance(error, ClientDisconnect):
            message = "The connection was closed before the whole body arrived."
            return _Refusal(InvalidRequest(message))
        if isinstance(error, HTTPException):
            return self._http_refusal(scope, error)
        _log(scope)
        failed = ServiceError("The service failed on this request. Its log says why.")
        failed.code = "internal"
        return _Refusal(failed)

    def _http_refusal(self, scope: Scope, error: HTTPException) -> "_Refusal":
        """Return the refusal for an error that Starlette or an endpoint raised as a status."""
        headers = error.headers
        match error.status_code:
            case 404:
                refusal = RequestError("There is nothing at this path; see the documentation.")
                refusal.code = "not_found"
            case 405:
                methods = self._routes.methods(scope)
                refusal = RequestError(
                    f"This path does not support {scope['method'][:20]}. "
                    f"Use {' or '.join(methods)}."
                )
                refusal.code = "method_not_allowed"
                headers = {"Allow": ", ".join(methods)}
            case _:
                refusal = RequestError("The request cannot be read.")
        return _Refusal(refusal, error.status_code, headers)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """An error as it is answered; `status` None stands for the status of its class."""

    error: TaggerError
    status: int | None = None
    headers: Mapping[str, str] | None = None


def _log(scope: Scope) -> None:
    """Log the current exception with the documented path, which has no content of the request."""
    path = getattr(scope.get("route"), "path", "other")
    logger.exception("%s %s failed", scope["method"], path)
