"""Calls from one deployment to another: by value, with retries, and errors mapped in one place.

Encoding and scoring change nothing, so a call whose replica died can be retried; Serve itself does
not retry once a replica has accepted the request. What a replica raises arrives as a `RayTaskError`
whose text has paths, addresses and a traceback. Only errors of our own tree are passed on;
everything else becomes `InferenceFailed`.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app.errors import DeadlineExceeded, InferenceFailed, Overloaded, TaggerError, Unavailable

logger = logging.getLogger(__name__)

MAX_TRIES = 3
RETRY_PAUSE_S = 0.2
RESTARTING = "A part of the service is restarting. Try again in a few seconds."
DEFAULT_MESSAGE_BYTES = 4 * 2**20
"""Serve's own limit for a message by value.

Source: `RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH`, ray/serve constants.
"""


class InnerCalls:
    """Calls one deployment through its handle, within a time limit."""

    def __init__(
        self,
        handle: DeploymentHandle,
        timeout_s: float,
        on_retry: Callable[[], None] = lambda: None,
    ) -> None:
        # `_by_reference=False` sends a gRPC message, which takes a third of the object store's CPU
        # for messages of this size
        self._handle = handle.options(_by_reference=False)
        self._timeout_s = timeout_s
        self._on_retry = on_retry

    async def __call__(self, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        """Call a method of some replica and return its result.

        Raises:
            Overloaded: The deployment's queue is full.
            Unavailable: Its replicas died, one after the other, or it has none.
            DeadlineExceeded: The time limit is over.
            TaggerError: The replica's error if it is one of ours, else `InferenceFailed`.
        """
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                return await self._call_until_answered(method, args)
        except TimeoutError as error:
            raise DeadlineExceeded("The service took too long to answer. Try again.") from error

    async def _call_until_answered(self, method: str, args: tuple[Any, ...]) -> Any:
        for remaining in reversed(range(MAX_TRIES)):
            try:
                return await getattr(self._handle, method).remote(*args)
            except Exception as error:
                known = to_tagger_error(error)
                if not isinstance(known, Unavailable) or not remaining:
                    raise known from None
                logger.warning(
                    "a replica died during %s, calling another (%s)", method, type(error).__name__
                )
                self._on_retry()
                await asyncio.sleep(RETRY_PAUSE_S)
        raise AssertionError("the last try either returns or raises")


_REFUSALS = {
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INVALID_ARGUMENT,
}


def _call_was_cut(error: grpc.aio.AioRpcError) -> bool:
    """Whether the connection broke during a call; False if the call itself was refused.

    Serve turns only `UNAVAILABLE` into an error of its own (ray/serve/_private/replica_result.py).
    A process that is killed while it answers also ends calls with `UNKNOWN`, `INTERNAL` or
    `CANCELLED`.
    """
    return error.code() not in _REFUSALS


def to_tagger_error(error: BaseException) -> TaggerError:
    """Return the error of our own tree for an error of Ray's, without any of its text."""
    if isinstance(error, RayTaskError):
        error = error.cause if isinstance(error.cause, Exception) else error
    match error:
        case TaggerError() if not isinstance(error, RayTaskError):
            return error
        case BackPressureError():
            return Overloaded("Every queue of the service is full. Try again in a second.")
        case RayActorError() | DeploymentUnavailableError():  # ActorDied, ActorUnavailable
            return Unavailable(RESTARTING)
        case grpc.aio.AioRpcError() if _call_was_cut(error):
            return Unavailable(RESTARTING)
        case RayError() | RayServeException():
            logger.error("an inner call failed: %s", error)
            return InferenceFailed("The service could not process the request.")
        case _:
            logger.error("an inner call failed", exc_info=error)
            return InferenceFailed("The service could not process the request.")
