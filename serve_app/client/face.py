"""What both clients hold: how they are set up, before anything is sent."""

import os
from collections.abc import Callable
from typing import Any, TypedDict

import httpx

from serve_app.client.calls import Calls
from serve_app.client.exchange import Exchange
from serve_app.client.retries import Retries

API_KEY_VARIABLE = "SIGLIP_API_KEY"
CONCURRENCY = 8
"""Files of `tag_files` under way at the same time, unless it is set otherwise."""
IMAGES_PER_REQUEST = 16
"""Of `tag_many`, unless it is set otherwise; the service takes 64 unless that is."""
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100)
"""How many requests are made at the same time is the caller's choice, not the connections'."""


class Settings(TypedDict, total=False):
    """How a client tries; the defaults are those of `Exchange` and `Retries`.

    Attributes:
        timeout_s: Seconds that one try waits for the next bytes of an answer.
        max_tries: Times that a request is sent at most.
        deadline_s: Seconds from the first try after which none is begun or waited for.
        max_wait_s: Most seconds between two tries, whatever the service asks for.
        clock: Returns seconds that only grow, for tests.
        jitter: Returns a number in [0, 1), for tests.
    """

    timeout_s: float
    max_tries: int
    deadline_s: float
    max_wait_s: float
    clock: Callable[[], float]
    jitter: Callable[[], float]


class Face:
    """What both clients hold."""

    def __init__(self, base_url: str, api_key: str | None, settings: Settings) -> None:
        given: dict[str, Any] = dict(settings)
        tries = {
            name: given.pop(name)
            for name in ("max_tries", "deadline_s", "max_wait_s")
            if name in given
        }
        key = os.environ.get(API_KEY_VARIABLE) if api_key is None else api_key
        self._exchange = Exchange(base_url, key or None, retries=Retries(**tries), **given)
        self._calls = Calls(self._exchange)

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self._exchange!r}"
