"""What all dialects need: routes whose errors have the dialect's own shape."""

import functools
import logging
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.answers import ErrorShape, error_response
from serve_app.errors import ServiceError, TaggerError

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]


def with_errors(shape: ErrorShape) -> Callable[[Endpoint], Endpoint]:
    """Return a decorator that answers every error of an endpoint in a dialect's shape, and shows
    nothing of unexpected ones.
    """

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
            return error_response(known, shape)

        return answer

    return decorate
