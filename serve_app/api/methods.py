"""HEAD and OPTIONS for every route, derived from the methods that it has."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAsGet:
    """Pure ASGI: answers HEAD as GET is answered, without the body.

    FastAPI's routes know only GET.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        as_get = {**scope, "method": "GET"}
        try:
            await self._app(as_get, receive, send_head)
        finally:
            if "route" in as_get:  # the request log and the metrics name it
                scope["route"] = as_get["route"]


def allowed_methods(request: Request) -> list[str]:
    """Return the methods of a path, from all its routes: Starlette names those of the first, and
    `/` has several.
    """
    matching = [
        route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE
    ]
    methods = {method for route in matching for method in getattr(route, "methods", None) or ()}
    if "GET" in methods:
        methods.add("HEAD")
    return sorted(methods)


def options_response(methods: list[str]) -> Response:
    """Return the response to OPTIONS: no content, and the methods of the path.

    Preflights of CORS never get here.
    """
    return Response(status_code=204, headers={"Allow": ", ".join(sorted({*methods, "OPTIONS"}))})
