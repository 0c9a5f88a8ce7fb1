"""Middlewares for HEAD and OPTIONS, which every route answers by the methods that it has."""

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.routes import RouteTable


class HeadWithoutBody:
    """Removes the body from responses to HEAD, which Starlette routes to the endpoint of GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app(scope, receive, send_head)


class OptionsResponses:
    """Answers OPTIONS with 204 and the methods of the path. Preflights of CORS never get here."""

    def __init__(self, app: ASGIApp, routes: RouteTable) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        methods = self._routes.methods(scope) if scope["method"] == "OPTIONS" else []
        if not methods:
            await self._app(scope, receive, send)
            return
        scope["route"] = self._routes.nearest(scope)  # for logs and metrics
        allowed = ", ".join(sorted([*methods, "OPTIONS"]))
        await Response(status_code=204, headers={"Allow": allowed})(scope, receive, send)
