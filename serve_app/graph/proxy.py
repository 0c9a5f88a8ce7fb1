"""ASGI middleware that runs before Serve handles a request, in its proxies and in the replicas
behind HAProxy.

Serve calls `middlewares` in each of these processes (`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`).
"""

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

IMPORT_PATH = "serve_app.graph.proxy:middlewares"
ROUTES = "/-/routes"
"""Path where Serve lists all applications to every client, even if the service requires API
keys."""
SERVE_HEADERS = (b"x-request-timeout-seconds", b"x-request-disconnect-disabled")
"""Headers with which any client may set Serve's timeout, or keep its request running after it
disconnects."""


class Screen:
    """Removes Serve's own headers from requests, and responds with 404 where Serve would list its
    applications.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, unless it asks for the list of applications."""
        if scope["type"] == "http":
            if scope["path"].rstrip("/") == ROUTES:
                await PlainTextResponse("Not Found", 404)(scope, receive, send)
                return
            scope["headers"] = [
                header for header in scope["headers"] if header[0].lower() not in SERVE_HEADERS
            ]
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """Return the middlewares of a process that receives requests."""
    return [Middleware(Screen)]
