"""Limits on the number of concurrent requests of one process and on the bytes that they hold.

Not here: limits on a single request (`bodies.py`, `json_bodies.py`), how clients share a budget
(`fairness/budgets.py`).
"""

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.body_progress import BodyProgress
from serve_app.api.client_timeouts import SMALL_WRITE_BYTES
from serve_app.api.content_length import announced_bytes
from serve_app.api.routes import RouteTable
from serve_app.config.limits import HELD_FOR_EACH_BYTE, Limits
from serve_app.errors import Overloaded
from serve_app.fairness.budgets import SharedBudget
from serve_app.fairness.drain_rate import DrainRate
from serve_app.telemetry.record import current

MAX_PACED = 128
"""At most this many refusals are delayed at the same time; further ones are sent immediately."""
MAX_PACED_BYTES = 64 * 1024
"""Only requests with bodies of at most this size are delayed. Serve reads and holds what the client
sends during the delay, so a larger body must be refused immediately."""
PACE_S = 0.25
"""Delay of a refusal: a client that retries immediately would take CPU time from accepted
requests."""
TOO_MANY_REQUESTS = (
    "The service is answering as many requests as it can. Retry after the time in Retry-After."
)
TOO_MANY_BYTES = (
    "The service holds as many bytes of requests as it can. "
    "Retry after the time in Retry-After, or send less at once."
)
MIN_HELD_RESPONSE_BYTES = SMALL_WRITE_BYTES + 1
"""Smaller responses are sent without waiting for the client, so their bytes are not held."""


class _Budget:
    """A budget that knows when it will have room again."""

    def __init__(self, capacity: float, refusal: str) -> None:
        self.shared = SharedBudget(capacity)
        self._refusal = refusal
        self._drain = DrainRate()

    def give_back(self, client: str, amount: float) -> None:
        self.shared.give_back(client, amount)
        if amount:
            self._drain.note(amount, time.monotonic())

    def refusal(self) -> Overloaded:
        """Return the error for a client that has to wait until half of the budget is free."""
        excess = max(0.0, self.shared.held - self.shared.capacity / 2)
        return Overloaded(self._refusal, self._drain.seconds_for(excess, time.monotonic()))


class Admission:
    """The budgets of one process."""

    def __init__(self, limits: Limits) -> None:
        """Start with nothing held."""
        self._requests = _Budget(limits.max_concurrent_requests, TOO_MANY_REQUESTS)
        self._bytes = _Budget(limits.max_held_bytes, TOO_MANY_BYTES)
        self._paced = 0

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return not self._requests.shared.held

    @property
    def held_bytes(self) -> float:
        """Bytes of bodies and responses that are held now."""
        return self._bytes.shared.held

    async def enter(self, client: str, announced: int | None) -> "Admitted":
        """Admit a request; call `leave` on the result when the request ends.

        Args:
            client: The client that sent it.
            announced: Size of its body in bytes according to its headers; None if they do not say.

        Raises:
            Overloaded: Too many requests are in progress, and this client already has its share of
                them.
        """
        if self._requests.shared.take(client, 1):
            return Admitted(self._requests, self._bytes, client)
        is_small = announced is not None and announced <= MAX_PACED_BYTES
        if is_small and self._paced < MAX_PACED:
            with self._pacing():
                await asyncio.sleep(PACE_S)
        raise self._requests.refusal()

    @contextmanager
    def _pacing(self) -> Iterator[None]:
        self._paced += 1
        try:
            yield
        finally:
            self._paced -= 1


class Admitted:
    """An admitted request, and the bytes that it holds."""

    def __init__(self, requests: _Budget, held: _Budget, client: str) -> None:
        """Hold no bytes yet."""
        self._requests = requests
        self._bytes = held
        self._client = client
        self._held = 0.0

    def check_announced(self, size: float) -> None:
        """Refuse a body before it is read.

        Raises:
            Overloaded: Its announced size does not fit now.
        """
        budget = self._bytes.shared
        if size <= budget.capacity and not budget.fits(self._client, size):
            raise self._bytes.refusal()

    def hold(self, size: float) -> None:
        """Hold more bytes of the body or of the response.

        Raises:
            Overloaded: They do not fit now.
        """
        budget = self._bytes.shared
        if not size or size > budget.capacity:
            return  # for too much, a retry would not help; the limit on a single body refuses it
        if not budget.take(self._client, size):
            raise self._bytes.refusal()
        self._held += size

    def leave(self) -> None:
        """Give everything back."""
        self._requests.give_back(self._client, 1)
        self._bytes.give_back(self._client, self._held)
        self._held = 0.0


class AdmitRequests:
    """Middleware that holds a request's place and its bytes in the budgets until it has ended."""

    def __init__(self, app: ASGIApp, admission: Admission, routes: RouteTable) -> None:
        self._app = app
        self._admission = admission
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if self._routes.is_open(scope):  # a full service is not a dead one
            await self._app(scope, receive, send)
            return
        record = current()
        client = record.client if record else ""
        announced = announced_bytes(Headers(scope=scope))
        admitted = await self._admission.enter(client, announced)
        body = BodyProgress()

        async def receive_held() -> Message:
            if not body.num_bytes and not body.is_complete:
                admitted.check_announced(HELD_FOR_EACH_BYTE * (announced or 0))
            message = await receive()
            body.count(message)
            admitted.hold(HELD_FOR_EACH_BYTE * len(message.get("body", b"")))
            return message

        async def send_held(message: Message) -> None:
            if message["type"] == "http.response.start":
                admitted.hold(_held_bytes(message.get("headers", ())))
            await send(message)

        try:
            await self._app(scope, receive_held, send_held)
        finally:
            admitted.leave()


def _held_bytes(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Return how many bytes of a response with known length are held until they are sent."""
    for name, value in headers:
        if name.lower() == b"content-length":
            size = int(value)
            return size if size >= MIN_HELD_RESPONSE_BYTES else 0
    return 0
