"""One request on its way through the edge: what it may hold, how long its client may take, and how
it went.

Not here: what happens to every request (`edge.py`), the budgets of the process (`admission.py`).
"""

import asyncio
import re
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from serve_app.api.admission import Admission, Admitted
from serve_app.api.content_length import announced_bytes
from serve_app.config.limits import HELD_FOR_EACH_BYTE
from serve_app.errors import InvalidRequest, Overloaded, RequestTimeout
from serve_app.telemetry.record import RequestRecord

CLIENT_LEFT = 499
"""Status in logs and metrics of a request whose client did not wait; the number is nginx's."""
SMALL_WRITE_BYTES = 32 * 1024
"""A response sent in one message of at most this size fits into the buffers on its way, so sending
it never waits for the client."""
MAX_UNREAD_BYTES = 2**20
"""Bytes of a refused body that the server reads and drops by itself. If more is left, the
connection is closed or drained: a client could otherwise have the process read without end."""
MAX_DRAINED_BYTES = 256 * 2**20
"""Maximum body that is drained."""
DRAIN_S = 5.0
"""Maximum time for draining one body."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""Headers of every response that does not set them itself."""


@dataclass(frozen=True, slots=True)
class AnsweredRequest:
    """A request and how it went, as logs and metrics are told.

    Attributes:
        request_id: Sent by the client, or made here.
        key: Name of the API key, if keys are asked for.
        method: GET, POST, …
        route: The path as documented, such as `/v1/vocabularies/{name}`; `other` where there is
            nothing.
        status: Of the answer; 499 where the client left, or was cut off by Serve, 500 where the
            answer broke off.
        code: Of the error, if it is one.
        seconds: From the first byte of the request's head to the last of the answer.
        bytes_in: Of the body.
        images: That it held.
        unread: Codes of those that could not be fetched or unpacked, and so were not worked on.
        stages: Seconds of each stage, of the image for which it took longest.
    """

    request_id: str
    key: str | None
    method: str
    route: str
    status: int
    code: str | None
    seconds: float
    bytes_in: int
    images: int
    stages: dict[str, float]
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClientTimes:
    """How long a client may take.

    Attributes:
        body_s: For the whole body of a request.
        write_s: To read the next part of a response, after which its connection is closed.
    """

    body_s: float
    write_s: float


class Passage:
    """One request on its way through."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        times: ClientTimes,
        returns_request_id: bool,
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started_s = time.perf_counter()
        self._body_ends_s = asyncio.get_running_loop().time() + times.body_s
        self._write_s = times.write_s
        self._returns_request_id = returns_request_id
        self._body_is_here = False
        self.admission: Admission | None = None
        self.admitted: Admitted | None = None
        self.refusal: Overloaded | None = None
        self._is_streamed = False
        self.headers = Headers(scope=scope)
        asked = self.headers.get("x-request-id", "")
        self.record = RequestRecord(asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex)
        self.status = 0
        self.failed = False
        self._left = False
        self._ended = False
        self._bytes_in = 0

    @property
    def route(self) -> str:
        """The path as it is documented, so that logs and metrics have few of them."""
        known = self._scope.get("route")
        return str(getattr(known, "path", None) or getattr(known, "path_format", None) or "other")

    @property
    def announced(self) -> int | None:
        """Size of the body in bytes according to its headers; None if they do not say."""
        return announced_bytes(self.headers)

    async def receive(self) -> Message:
        """Pass a part of the body on, within the time that the body has."""
        if self._body_is_here:
            return await self._receive()
        if self.admitted is not None and not self._bytes_in:
            self.admitted.check_announced(HELD_FOR_EACH_BYTE * (self.announced or 0))
        try:
            async with asyncio.timeout_at(self._body_ends_s):
                message = await self._receive()
        except TimeoutError as error:
            raise RequestTimeout(
                "The request's body did not arrive in time. Send it again, or a smaller one."
            ) from error
        if message["type"] == "http.disconnect":
            self._left = True
            raise InvalidRequest("The connection was closed before the whole body arrived.")
        size = len(message.get("body", b""))
        self._bytes_in += size
        if self.admitted is not None and size:
            self.admitted.hold(HELD_FOR_EACH_BYTE * size)
        self._body_is_here = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Pass a part of the answer on, the head with what every answer has."""
        if message["type"] == "http.response.start":
            self._hold_response(message.get("headers", ()))
            await self._drain()
            self.status = message["status"]
            message["headers"] = self._with_headers(message.get("headers", ()))
        self._is_streamed = self._is_streamed or message.get("more_body", False)
        if self._is_streamed or len(message.get("body", b"")) > SMALL_WRITE_BYTES:
            await self._send_in_time(message)
        else:
            await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._ended = True

    def _hold_response(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Hold the bytes of a large response until it is sent; refuse it instead where there is no
        room for it.
        """
        size = next((int(value) for name, value in headers if name.lower() == b"content-length"), 0)
        if self.admitted is None or size <= SMALL_WRITE_BYTES:
            return
        try:
            self.admitted.hold(size)
        except Overloaded as error:
            self.refusal = error
            raise

    async def _send_in_time(self, message: Message) -> None:
        """Pass on a part that may have to wait for the client; give the client up if it does not
        read.
        """
        try:
            async with asyncio.timeout(self._write_s):
                await self._send(message)
        except TimeoutError as error:
            self._left = True
            raise OSError("the client did not read the response in time") from error

    def answered(self) -> AnsweredRequest:
        """Return how it went."""
        status = self._outcome()
        return AnsweredRequest(
            request_id=self.record.request_id,
            key=self.record.key,
            method=self._scope["method"],
            route=self.route,
            status=status,
            code=None if status == CLIENT_LEFT else self.record.code,
            seconds=time.perf_counter() - self._started_s,
            bytes_in=self._bytes_in,
            images=len(self.record.images) + len(self.record.unread),
            stages=self.record.longest(),
            unread=tuple(self.record.unread),
        )

    def _outcome(self) -> int:
        """Return the status that is noted: also of an answer that nobody waited for, or that broke
        off.
        """
        if self.failed:
            return 500
        return CLIENT_LEFT if self._left or not self._ended else self.status

    def _with_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return an answer's headers with what every answer has; as bytes, since this is done for
        each.
        """
        own = list(headers)
        present = {name for name, _ in own}
        own += [header for header in _SECURITY if header[0] not in present]
        if self._returns_request_id:
            own.append((b"x-request-id", self.record.request_id.encode()))
        if self._leaves_much_unread():
            own.append((b"connection", b"close"))
        times = [
            f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in self.record.longest().items()
        ]
        times.append(f"total;dur={(time.perf_counter() - self._started_s) * 1000:.1f}")
        own.append((b"server-timing", ", ".join(times).encode()))
        return own

    async def _drain(self) -> None:
        """Read the rest of a refused body and drop it, if it is not too much and few others are
        being drained.
        """
        if (
            not self._leaves_much_unread()
            or self.announced is None
            or self.announced > MAX_DRAINED_BYTES
        ):
            return
        if self.admission is None or not self.admission.take_drain():
            return
        try:
            async with asyncio.timeout(DRAIN_S):
                while not self._body_is_here:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        return
                    self._body_is_here = not message.get("more_body", False)
        except TimeoutError:
            return  # what is left closes the connection
        finally:
            self.admission.end_drain()

    def _leaves_much_unread(self) -> bool:
        """Whether the response comes while the client still has much to send, which would be read
        to its end otherwise.
        """
        if self._body_is_here or self._scope["method"] in ("GET", "HEAD"):
            return False
        return self.announced is None or self.announced - self._bytes_in > MAX_UNREAD_BYTES
