"""Base class of both clients: their settings, before anything is sent."""

import os
from collections.abc import Callable
from typing import Any, TypedDict

import httpx

from serve_app.client.calls import Calls
from serve_app.client.exchange import Exchange
from serve_app.client.retries import Retries

API_KEY_VARIABLE = "SIGLIP_API_KEY"
CONCURRENCY = 16
"""Default number of files that `tag_files` processes at the same time: two requests of eight."""
IMAGES_PER_REQUEST = 16
"""Default number of images in one request of `tag_many`; the service accepts 64 by default."""
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100)
"""Limits of the connection pool; it is unbounded, because the caller chooses the concurrency."""
_RETRY_SETTINGS = ("max_tries", "deadline_s", "max_wait_s")


class Settings(TypedDict, total=False):
    """Timeouts and retries of a client; `Exchange` and `Retries` have the defaults.

    Attributes:
        timeout_s: Seconds that one try waits for the next bytes of a response.
        max_tries: Maximum number of times that a request is sent.
        deadline_s: Seconds after the first try until the client gives up.
        max_wait_s: Maximum seconds between two tries, even if the service asks for more.
        clock: Returns monotonic seconds; tests replace it.
        jitter: Returns a random number in [0, 1); tests replace it.
    """

    timeout_s: float
    max_tries: int
    deadline_s: float
    max_wait_s: float
    clock: Callable[[], float]
    jitter: Callable[[], float]


class BaseClient:
    """The parts that both clients share."""

    def __init__(self, base_url: str, api_key: str | None, settings: Settings) -> None:
        exchange_settings: dict[str, Any] = dict(settings)
        retry_settings = {
            name: exchange_settings.pop(name)
            for name in _RETRY_SETTINGS
            if name in exchange_settings
        }
        retries = Retries(**retry_settings)

        key = os.environ.get(API_KEY_VARIABLE) if api_key is None else api_key
        self._exchange = Exchange(base_url, key or None, retries=retries, **exchange_settings)
        self._calls = Calls(self._exchange)

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self._exchange!r}"
