"""Middleware that records every request and reports it to logs and metrics when it has ended.

Not here: what a record holds (`telemetry/record.py`), how it is logged (`request_log.py`).
"""

import logging
import re
import secrets
import time
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.body_progress import BodyProgress
from serve_app.telemetry import record as telemetry
from serve_app.telemetry.record import FinishedRequest, Observer, RequestRecord

logger = logging.getLogger(__name__)

CLIENT_LEFT = 499
"""Status in logs and metrics of a request whose client did not wait. The number is nginx's."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class RecordRequests:
    """Starts the record of each request, and calls the observers when the request has ended."""

    def __init__(self, app: ASGIApp, observers: Sequence[Observer] = ()) -> None:
        self._app = app
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        exchange = _Exchange(scope, receive, send)
        telemetry.begin(exchange.record)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except OSError:
            raise  # the connection broke while the response was sent
        except Exception:
            exchange.has_failed = True
            raise
        finally:
            self._report(exchange.answered())

    def _report(self, answered: FinishedRequest) -> None:
        """Call every observer. One that fails, such as on a full disk, fails nothing else."""
        for observer in self._observers:
            try:
                observer(answered)
            except Exception:
                logger.exception("a request could not be recorded")


class _Exchange:
    """One request and its response, as they pass."""

    __slots__ = (
        "_body",
        "_has_ended",
        "_has_left",
        "_receive",
        "_scope",
        "_send",
        "_status",
        "has_failed",
        "record",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.record = RequestRecord(_request_id(scope), client=_address(scope))
        self.has_failed = False
        self._scope = scope
        self._receive = receive
        self._send = send
        self._body = BodyProgress()
        self._status = 0
        self._has_ended = False
        self._has_left = False

    async def receive(self) -> Message:
        """Pass a message of the client on."""
        message = await self._receive()
        if not self._body.is_complete:
            self._has_left = message["type"] == "http.disconnect"
            self._body.count(message)
        return message

    async def send(self, message: Message) -> None:
        """Pass a message of the response on."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._has_ended = True

    def answered(self) -> FinishedRequest:
        """Return the outcome for the observers."""
        record = self.record
        status = self._outcome()
        return FinishedRequest(
            request_id=record.request_id,
            key=record.key,
            method=self._scope["method"],
            route=_route_path(self._scope),
            status=status,
            code=None if status == CLIENT_LEFT else record.code,
            seconds=time.perf_counter() - record.started_s,
            bytes_in=self._body.num_bytes,
            images=len(record.images) + len(record.unread),
            stages=record.longest(),
            unread=tuple(record.unread),
        )

    def _outcome(self) -> int:
        """Return the status to record, also of a response that broke off or that nobody read."""
        if self.has_failed:
            return 500
        return self._status if self._has_ended and not self._has_left else CLIENT_LEFT


def _request_id(scope: Scope) -> str:
    """Return the client's request id, or a new one for an id that could forge log lines."""
    requested = Headers(scope=scope).get("x-request-id", "")
    return requested if _REQUEST_ID.fullmatch(requested) else secrets.token_hex(16)


def _address(scope: Scope) -> str:
    address = scope.get("client")
    return str(address[0]) if address else ""


def _route_path(scope: Scope) -> str:
    """Return the path of the route, so that logs and metrics have few different ones."""
    return str(getattr(scope.get("route"), "path", "other"))
