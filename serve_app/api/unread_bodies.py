"""Middleware for requests that are answered before their body has arrived, such as refusals."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.body_progress import BodyProgress
from serve_app.api.content_length import announced_bytes

MAX_UNREAD_BYTES = 2**20
"""Bytes of a refused body that the server reads and drops by itself. If more is left, it is drained
here or the connection is closed, so that a client cannot have the process read without end."""
MAX_DRAINED_BYTES = 256 * 2**20
"""Maximum body that is drained."""
MAX_DRAINED = 4
"""Maximum number of bodies that are drained at the same time. Most clients look for the response
only when they have sent everything. The connections of others are closed."""
DRAIN_S = 5.0
"""Maximum time for draining one body."""


class UnreadBodies:
    """Drains what is left of a body before the response begins, or closes the connection."""

    def __init__(self, app: ASGIApp) -> None:
        self.num_draining = 0
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        body = BodyProgress()

        async def receive_counted() -> Message:
            message = await receive()
            body.count(message)
            return message

        async def send_after_body(message: Message) -> None:
            if message["type"] == "http.response.start" and not body.is_complete:
                await self._finish(body, announced_bytes(Headers(scope=scope)), receive, message)
            await send(message)

        await self._app(scope, receive_counted, send_after_body)

    async def _finish(
        self, body: BodyProgress, announced: int | None, receive: Receive, start: Message
    ) -> None:
        """Drain the body; if much of it is left then, have the response close the connection."""
        if not _leaves_much(body, announced):
            return
        is_drainable = announced is not None and announced <= MAX_DRAINED_BYTES
        if is_drainable and self.num_draining < MAX_DRAINED:
            await self._drain(body, receive)
        if _leaves_much(body, announced):
            start["headers"] = [*start.get("headers", ()), (b"connection", b"close")]

    async def _drain(self, body: BodyProgress, receive: Receive) -> None:
        self.num_draining += 1
        try:
            async with asyncio.timeout(DRAIN_S):
                while not body.is_complete:
                    body.count(await receive())
        except TimeoutError:
            return  # the connection is closed
        finally:
            self.num_draining -= 1


def _leaves_much(body: BodyProgress, announced: int | None) -> bool:
    """Return whether the server would have to read much more, or an unknown amount."""
    if body.is_complete:
        return False
    return announced is None or announced - body.num_bytes > MAX_UNREAD_BYTES
