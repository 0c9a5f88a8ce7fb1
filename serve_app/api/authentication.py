"""Middleware that lets only requests with a valid API key through.

Not here: the keys (`keys.py`), which routes are open (`routes.py`).
"""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.api.keys import ApiKeys
from serve_app.api.routes import RouteTable
from serve_app.telemetry.record import current


class RequireKey:
    """Raises `Unauthorized` for a request without a valid key, unless its route is open."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, routes: RouteTable) -> None:
        self._app = app
        self._keys = keys
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if not self._routes.is_open(scope):
            name = self._keys.name_of(Headers(scope=scope))
            record = current()
            assert record is not None, "the record is begun outside"
            record.key = name
            record.client = f"key {name}"  # the client that shares the budgets with others
        await self._app(scope, receive, send)
