"""What all dialects need: routes whose errors have the dialect's own shape."""

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve_app.api.statuses import RETRY_AFTER_S, status_of
from serve_app.errors import ServiceError, TaggerError

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]
ErrorShape = Callable[[TaggerError, int], dict[str, Any]]
"""From an error and its status to the JSON that a client of the dialect expects."""


def with_errors(shape: ErrorShape) -> Callable[[Endpoint], Endpoint]:
    """Return a decorator that answers every error of an endpoint in a dialect's shape, and shows nothing of unexpected ones."""

    def decorate(endpoint: Endpoint) -> Endpoint:
        """Wrap one endpoint."""

        @functools.wraps(endpoint)
        async def answer(request: Request) -> Response:
            """Answer a request, whatever goes wrong."""
            try:
                return await endpoint(request)
            except TaggerError as error:
                known = error
            except Exception:
                logger.exception("%s %s failed", request.method, request.url.path)
                known = ServiceError("The service failed on this request. Its log says why.")
            status = status_of(known)
            headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else None
            return JSONResponse(shape(known, status), status, headers)

        return answer

    return decorate
