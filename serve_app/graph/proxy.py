"""What stands before Serve's own handling of a request, in its proxies and in the replicas that HAProxy asks.

Serve calls `middlewares` in each of these processes (`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`).
"""

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

IMPORT_PATH = "serve_app.graph.proxy:middlewares"
ROUTES = "/-/routes"
"""Where Serve names every application to everybody, also where the service asks for keys."""
SERVE_HEADERS = (b"x-request-timeout-seconds", b"x-request-disconnect-disabled")
"""By which any client may set Serve's time-out, or have its request go on after it has left."""


class Screen:
    """Takes Serve's own headers off a request, and answers 404 where Serve would list its applications."""

    def __init__(self, app: ASGIApp) -> None:
        """Stand before an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, unless it asks for the list."""
        if scope["type"] == "http":
            if scope["path"].rstrip("/") == ROUTES:
                await PlainTextResponse("Not Found", 404)(scope, receive, send)
                return
            scope["headers"] = [header for header in scope["headers"] if header[0].lower() not in SERVE_HEADERS]
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """Return the middlewares of a process that takes requests."""
    return [Middleware(Screen)]
