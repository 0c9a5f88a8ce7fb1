"""The ASGI application: a router inside a list of middlewares."""

from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.api.routes import RouteTable


class Application:
    """Routes HTTP requests through the middlewares, and everything else to Starlette's router."""

    def __init__(self, routes: RouteTable, middleware: Sequence[Middleware]) -> None:
        """Build the application.

        Args:
            routes: The routes.
            middleware: The middlewares, the outermost first.
        """
        self._router = Router(routes.routes)
        self._http = wrapped(self._router, middleware)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or take part in the server's lifespan."""
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        scope["app"] = self  # has Starlette raise 404 and 405 instead of answering them as text
        await self._http(scope, receive, send)


def wrapped(app: ASGIApp, middleware: Sequence[Middleware]) -> ASGIApp:
    """Return an application inside a list of middlewares, the outermost first."""
    for cls, args, kwargs in reversed(middleware):
        app = cls(app, *args, **kwargs)
    return app
