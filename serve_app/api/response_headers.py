"""Middleware that adds the headers of every response: browser policies, request id, timing."""

import time
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.telemetry.record import RequestRecord, current

SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""Headers of every response that does not set them itself."""


class ResponseHeaders:
    """Adds `SECURITY`, `X-Request-Id` and `Server-Timing`."""

    def __init__(self, app: ASGIApp, returns_request_id: bool = True) -> None:
        """Wrap an application.

        Args:
            app: The application.
            returns_request_id: Whether `X-Request-Id` is set here. Ray Serve sets it itself.
        """
        self._app = app
        self._returns_request_id = returns_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        record = current()
        assert record is not None, "the record is begun outside"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = self._extended(message.get("headers", ()), record)
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _extended(
        self, headers: Iterable[tuple[bytes, bytes]], record: RequestRecord
    ) -> list[tuple[bytes, bytes]]:
        extended = list(headers)
        present = {name for name, _ in extended}
        extended += [header for header in SECURITY if header[0] not in present]
        if self._returns_request_id:
            extended.append((b"x-request-id", record.request_id.encode()))
        extended.append((b"server-timing", _server_timing(record).encode()))
        return extended


def _server_timing(record: RequestRecord) -> str:
    total_s = time.perf_counter() - record.started_s
    stages = record.longest() | {"total": total_s}
    return ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in stages.items())
