"""Middleware that limits how long a client takes to send its request and read the response."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.body_progress import BodyProgress
from serve_app.errors import RequestTimeout

SMALL_WRITE_BYTES = 32 * 1024
"""A response sent in one message of at most this size fits into the buffers on its way, so sending
it never waits for the client."""


class ClientTimeouts:
    """Refuses bodies that arrive too slowly, and gives up clients that do not read."""

    def __init__(self, app: ASGIApp, body_s: float, write_s: float) -> None:
        """Wrap an application.

        Args:
            app: The application.
            body_s: Maximum time in seconds for the whole body of a request.
            write_s: Maximum time in seconds until the client reads the next part of a response.
        """
        self._app = app
        self._body_s = body_s
        self._write_s = write_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        body_ends_s = asyncio.get_running_loop().time() + self._body_s
        body = BodyProgress()
        is_streamed = False

        async def receive_in_time() -> Message:
            """Receive the next part of the body before the body's time is over."""
            if body.is_complete:  # only a disconnect can follow, whenever it comes
                return await receive()
            try:
                async with asyncio.timeout_at(body_ends_s):
                    message = await receive()
            except TimeoutError as error:
                raise RequestTimeout(
                    "The request's body did not arrive in time. Send it again, or a smaller one."
                ) from error
            body.count(message)
            return message

        async def send_in_time(message: Message) -> None:
            """Send a part of the response; a client that does not read it loses the connection."""
            nonlocal is_streamed
            # the last part of a stream may have to wait for the parts before it
            is_streamed = is_streamed or message.get("more_body", False)
            if not is_streamed and len(message.get("body", b"")) <= SMALL_WRITE_BYTES:
                await send(message)
                return
            try:
                async with asyncio.timeout(self._write_s):
                    await send(message)
            except TimeoutError as error:
                raise OSError("the client did not read the response in time") from error

        await self._app(scope, receive_in_time, send_in_time)
