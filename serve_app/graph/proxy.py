"""ASGI middleware that screens requests before Serve handles them.

It runs in Serve's proxies and in the replicas behind HAProxy. Serve calls `middlewares` in each of
these processes (`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`).
"""

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

IMPORT_PATH = "serve_app.graph.proxy:middlewares"
ROUTES = "/-/routes"
"""Path at which Serve lists all applications to every client, even if API keys are required."""
SERVE_HEADERS = (b"x-request-timeout-seconds", b"x-request-disconnect-disabled")
"""Headers that let any client change Serve's timeout, or keep a request running after the client
disconnects."""


class Screen:
    """Removes Serve's headers from requests, and hides Serve's list of applications with a 404."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an ASGI application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, unless it requests the list of applications."""
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
