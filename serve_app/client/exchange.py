"""One request and its answer, however many tries that takes, as a generator that yields steps.

A step is a request to send, a time to wait, or a picture to read. Who drives the generator does it
and sends back what came of it (`blocking.py`, `awaited.py`), as httpx drives its auth flows;
nothing here sends, waits or reads.
"""

import random
import time
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from serve_app import __version__
from serve_app.client import failures
from serve_app.client.images import Image
from serve_app.client.retries import Retries
from serve_app.errors import ConfigError, TaggerError
from serve_app.untrusted.bounded_http import ACCEPTED_ENCODINGS

CONNECT_TIMEOUT_S = 5.0
MIN_TIMEOUT_S = 0.001
DEADLINE_S = "siglip_deadline_s"
"""Extension of a request: seconds after which reading its response is given up, however much
arrives."""
RETRIES = Retries()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wait:
    """A step: wait for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Read:
    """A step: read a picture, and send its bytes back."""

    image: Image


Call = Generator[httpx.Request | Wait | Read, Any, T]
"""Steps that end in a `T`; a request is answered with its `httpx.Response`, and what a step raises
is thrown in."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked for: a request without what is the same for all."""

    method: str
    path: str
    content: bytes | None = None
    content_type: str | None = None
    query: tuple[tuple[str, str], ...] | None = None


class Trying:
    """The tries of one call: how many there were, and since when."""

    def __init__(
        self, retries: Retries, clock: Callable[[], float], jitter: Callable[[], float]
    ) -> None:
        self._retries = retries
        self._clock = clock
        self._jitter = jitter
        self._started_s = clock()
        self.tries = 1

    def left_s(self) -> float:
        """Return the seconds until the deadline."""
        return self._started_s + self._retries.deadline_s - self._clock()

    def next_wait_s(self, told_s: float | None = None) -> float | None:
        """Count one try more and return the seconds to wait before it, or None if this was the
        last.
        """
        wait_s = self._retries.wait_s(
            self.tries, told_s, self._clock() - self._started_s, self._jitter()
        )
        self.tries += wait_s is not None
        return wait_s


@dataclass(frozen=True)
class Exchange:
    """Where the service is, and how it is spoken to.

    Attributes:
        base_url: Its address, such as `http://127.0.0.1:8000`.
        api_key: Sent with every request, if there is one.
        timeout_s: Seconds that one try waits for the next bytes of an answer.
        retries: How often a call is tried.
        clock: Returns seconds that only grow.
        jitter: Returns a number in [0, 1).

    Raises:
        ConfigError: The address, the key or the time cannot work.
    """

    base_url: str
    api_key: str | None = None
    timeout_s: float = 60.0
    retries: Retries = RETRIES
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", _checked_url(self.base_url))
        if self.api_key is not None and not (
            self.api_key.isascii() and self.api_key.isprintable() and " " not in self.api_key
        ):
            raise ConfigError(
                "The API key has characters that no header can carry, such as a blank or the end "
                "of a line."
            )
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s is {self.timeout_s}; it must be above 0.")

    def __repr__(self) -> str:
        masked = "None" if self.api_key is None else "'****'"
        return (
            f"({self.base_url!r}, api_key={masked}, timeout_s={self.timeout_s:g}, "
            f"max_tries={self.retries.max_tries})"
        )

    def trying(self, retries: Retries | None = None) -> Trying:
        """Return the count of a call's tries, at its beginning."""
        return Trying(retries or self.retries, self.clock, self.jitter)

    def run(self, ask: Ask, read: Callable[[bytes], T], retries: Retries | None = None) -> Call[T]:
        """Send a request until it is answered or given up, under one request id; `read` makes a `T`
        of the answer's body.

        Raises:
            TaggerError: What the service, or httpx, said last.
        """
        trying = self.trying(retries)
        request_id = uuid.uuid4().hex
        while True:
            try:
                response: httpx.Response = yield self._request(ask, request_id, trying.left_s())
            except failures.FOREIGN as foreign:
                failure = failures.of_exception(foreign, self.base_url)
            else:
                if response.is_success:
                    return self._answer(response, read, request_id)
                failure = failures.of_response(response, self.base_url)
            wait_s = trying.next_wait_s(failure.told_s) if failure.passing else None
            if wait_s is None:
                raise _marked(failure.error, request_id, trying.tries)
            yield Wait(wait_s)

    def _request(self, ask: Ask, request_id: str, left_s: float) -> httpx.Request:
        timeout_s = max(MIN_TIMEOUT_S, min(self.timeout_s, left_s))
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))
        headers = {
            "User-Agent": f"siglip-serve/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": ACCEPTED_ENCODINGS,
            "X-Request-Id": request_id,
        }
        if ask.content_type:
            headers["Content-Type"] = ask.content_type
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return httpx.Request(
            ask.method,
            self.base_url + ask.path,
            params=ask.query or None,
            headers=headers,
            content=ask.content,
            extensions={"timeout": timeout.as_dict(), DEADLINE_S: max(MIN_TIMEOUT_S, left_s)},
        )

    def _answer(self, response: httpx.Response, read: Callable[[bytes], T], request_id: str) -> T:
        try:
            answer = read(response.content)
        except (ValueError, RecursionError) as error:
            raise _marked(failures.not_ours(response, self.base_url), request_id, 1) from error
        if isinstance(answer, list):
            for outcome in answer:
                if isinstance(outcome, TaggerError):
                    outcome.request_id = request_id
        return answer


def _marked(error: TaggerError, request_id: str, tries: int) -> TaggerError:
    """Return an error with the id of its request, by which the service's log can be searched; also
    in its traceback.
    """
    error.request_id = request_id
    status = "" if error.status is None else f", status {error.status}"
    error.add_note(
        f"request {request_id}{status}, tried {tries} {'time' if tries == 1 else 'times'}"
    )
    return error


def _checked_url(text: str) -> str:
    """Return an address without a slash at its end."""
    try:
        url = httpx.URL(text.rstrip("/"))
    except httpx.InvalidURL:
        url = httpx.URL()
    if (
        url.scheme not in ("http", "https")
        or not url.host
        or url.userinfo
        or url.query
        or url.fragment
    ):
        raise ConfigError(
            "The service's address must be such as http://127.0.0.1:8000, without a user, a "
            "query or a fragment."
        )
    return str(url)
