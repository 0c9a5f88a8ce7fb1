"""Sends one request, with retries, as a generator that yields steps.

A step is a request to send, a time to wait, or an image to read. The client that drives the
generator performs the step and sends the result back (`sync_client.py`, `async_client.py`). httpx
drives its auth flows in the same way. This module itself does no I/O and never waits.
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
"""Name of a request extension: seconds after which the client stops reading the response, even if
more bytes keep arriving."""
RETRIES = Retries()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wait:
    """A step: wait for a number of seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Read:
    """A step: read an image, and send its bytes back."""

    image: Image


Call = Generator[httpx.Request | Wait | Read, Any, T]
"""A generator that yields steps and returns a `T`.

The driver sends the `httpx.Response` of a request back, and throws exceptions of a step into the
generator.
"""


@dataclass(frozen=True, slots=True)
class RequestParts:
    """The parts of a request that differ from call to call."""

    method: str
    path: str
    content: bytes | None = None
    content_type: str | None = None
    query: tuple[tuple[str, str], ...] | None = None


class RetryState:
    """Number of tries of one call, and when the first one started."""

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

    def next_wait_s(self, retry_after_s: float | None = None) -> float | None:
        """Return the seconds to wait before the next try, and count it; None if there is none."""
        wait_s = self._retries.wait_s(
            self.tries, retry_after_s, self._clock() - self._started_s, self._jitter()
        )
        self.tries += wait_s is not None
        return wait_s


@dataclass(frozen=True)
class Exchange:
    """Sends requests to one service, with its address, API key, timeouts and retries.

    Attributes:
        base_url: The service's address, such as `http://127.0.0.1:8000`.
        api_key: Sent with every request unless it is None.
        timeout_s: Seconds that one try waits for the next bytes of a response.
        retries: How often and how long a call is tried.
        clock: Returns monotonic seconds.
        jitter: Returns a random number in [0, 1).

    Raises:
        ConfigError: The address, the key or the timeout is not valid.
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
                "The API key contains characters that an HTTP header cannot carry, such as a space "
                "or a line break."
            )
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s is {self.timeout_s}; it must be greater than 0.")

    def __repr__(self) -> str:
        masked = "None" if self.api_key is None else "'****'"
        return (
            f"({self.base_url!r}, api_key={masked}, timeout_s={self.timeout_s:g}, "
            f"max_tries={self.retries.max_tries})"
        )

    def start_tries(self, retries: Retries | None = None) -> RetryState:
        """Return the state of a call whose first try starts now."""
        return RetryState(retries or self.retries, self.clock, self.jitter)

    def run(
        self, parts: RequestParts, parse: Callable[[bytes], T], retries: Retries | None = None
    ) -> Call[T]:
        """Send a request until it succeeds or the retries are used up, and return its parsed body.

        All tries share one request ID.

        Args:
            parts: The request.
            parse: Makes a `T` of the response's body.
            retries: Replaces the retries of the exchange.

        Raises:
            TaggerError: The error of the last try.
        """
        state = self.start_tries(retries)
        request_id = uuid.uuid4().hex
        while True:
            try:
                response: httpx.Response = yield self._request(parts, request_id, state.left_s())
            except failures.HTTPX_ERRORS as error:
                failure = failures.failure_of_exception(error, self.base_url)
            else:
                if response.is_success:
                    return self._parsed(response, parse, request_id)
                failure = failures.failure_of_response(response, self.base_url)

            wait_s = state.next_wait_s(failure.retry_after_s) if failure.is_temporary else None
            if wait_s is None:
                raise _with_request_id(failure.error, request_id, state.tries)
            yield Wait(wait_s)

    def _request(self, parts: RequestParts, request_id: str, left_s: float) -> httpx.Request:
        timeout_s = max(MIN_TIMEOUT_S, min(self.timeout_s, left_s))
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))
        headers = {
            "User-Agent": f"siglip-serve/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": ACCEPTED_ENCODINGS,
            "X-Request-Id": request_id,
        }
        if parts.content_type:
            headers["Content-Type"] = parts.content_type
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return httpx.Request(
            parts.method,
            self.base_url + parts.path,
            params=parts.query or None,
            headers=headers,
            content=parts.content,
            extensions={"timeout": timeout.as_dict(), DEADLINE_S: max(MIN_TIMEOUT_S, left_s)},
        )

    def _parsed(self, response: httpx.Response, parse: Callable[[bytes], T], request_id: str) -> T:
        """Return the parsed body of a response, and set the request ID on errors of its items."""
        try:
            parsed = parse(response.content)
        except (ValueError, RecursionError) as error:
            foreign = failures.foreign_response_error(response, self.base_url)
            raise _with_request_id(foreign, request_id, 1) from error
        if isinstance(parsed, list):
            for outcome in parsed:
                if isinstance(outcome, TaggerError):
                    outcome.request_id = request_id
        return parsed


def _with_request_id(error: TaggerError, request_id: str, tries: int) -> TaggerError:
    """Add the request ID to an error and to its traceback, to find the request in the log."""
    error.request_id = request_id
    status = "" if error.status is None else f", status {error.status}"
    error.add_note(
        f"request {request_id}{status}, tried {tries} {'time' if tries == 1 else 'times'}"
    )
    return error


def _checked_url(text: str) -> str:
    """Return a valid address without trailing slashes; raises `ConfigError` for any other."""
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
            "The service's address is not valid; use a URL such as http://127.0.0.1:8000, without "
            "a user, a query or a fragment."
        )
    return str(url)
