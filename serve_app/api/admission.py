"""Limits on the number of concurrent requests of one process and on the bytes that they hold.

Not here: limits on a single request (`bodies.py`, `json_bodies.py`).
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.config.limits import Limits
from serve_app.errors import Overloaded
from serve_app.fairness.budgets import SharedBudget

MAX_PACED = 128
"""At most this many refusals are delayed at the same time; further ones are sent immediately."""
MAX_DRAINED = 4
"""Refused bodies whose rest is read at the same time: most clients look for the response only when
they have sent everything. The connections of others are closed."""
MAX_PACED_BYTES = 64 * 1024
PACE_S = 0.25
"""Delay of a refusal: a client that retries immediately would take CPU time from accepted
requests."""
TOO_MANY_REQUESTS = (
    "The service is answering as many requests as it can. Retry after the time in Retry-After."
)
TOO_MANY_BYTES = "The service holds as many bytes of requests as it can. Retry after the time in Retry-After, or send less at once."


class Admission:
    """The budgets of one process."""

    def __init__(self, limits: Limits) -> None:
        """Start with nothing held."""
        self._requests = SharedBudget(limits.max_concurrent_requests)
        self._bytes = SharedBudget(limits.max_held_bytes)
        self._paced = 0
        self._drained = 0

    def take_drain(self) -> bool:
        """Whether the rest of one more refused body may be read and dropped; if so, `end_drain`
        must follow.
        """
        may = self._drained < MAX_DRAINED
        self._drained += may
        return may

    def end_drain(self) -> None:
        """Allow another body to be drained."""
        self._drained -= 1

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return not self._requests.held

    @property
    def held_bytes(self) -> float:
        """Bytes of bodies and responses that are held now."""
        return self._bytes.held

    async def enter(self, client: str, announced: int | None) -> "Admitted":
        """Admit a request; call `leave` on the result when the request ends.

        Args:
            client: The client that sent it.
            announced: Size of its body in bytes according to its headers; None if they do not say.

        Raises:
            Overloaded: Too many requests are in progress, and this client already has its share of
                them.
        """
        if self._requests.take(client, 1):
            return Admitted(self._requests, self._bytes, client)
        # Serve reads and holds what the client sends during the delay, so a large body must be
        # refused immediately
        is_small = announced is not None and announced <= MAX_PACED_BYTES
        if is_small and self._paced < MAX_PACED:
            with self._pacing():
                await asyncio.sleep(PACE_S)
        raise Overloaded(TOO_MANY_REQUESTS)

    @contextmanager
    def _pacing(self) -> Iterator[None]:
        self._paced += 1
        try:
            yield
        finally:
            self._paced -= 1


class Admitted:
    """An admitted request, and the bytes that it holds."""

    def __init__(self, requests: SharedBudget, held: SharedBudget, client: str) -> None:
        """Hold no bytes yet."""
        self._requests = requests
        self._bytes = held
        self._client = client
        self._held = 0.0

    def check_announced(self, size: float) -> None:
        """Refuse a body before it is read if its announced size does not fit now; raises
        `Overloaded`.
        """
        if size <= self._bytes.capacity and not self._bytes.fits(self._client, size):
            raise Overloaded(TOO_MANY_BYTES)

    def hold(self, size: float) -> None:
        """Hold more bytes of the body or of the response; raises `Overloaded` if they do not
        fit.
        """
        if size > self._bytes.capacity:
            return  # a retry would not help; the limit on a single body refuses it
        if not self._bytes.take(self._client, size):
            raise Overloaded(TOO_MANY_BYTES)
        self._held += size

    def leave(self) -> None:
        """Give everything back."""
        self._requests.give_back(self._client, 1)
        self._bytes.give_back(self._client, self._held)
        self._held = 0.0
