"""Calls from one deployment to another: transport, retries, and errors mapped in one place.

Small arrays go by value, in a gRPC message. Large ones go by reference: the caller writes them to
Ray's object store, and the replica maps that memory instead of copying it.

Encoding and scoring change no state, so a call can be retried if its replica died. Serve itself
does not retry after a replica has accepted the request. An error of a replica arrives as a
`RayTaskError` whose text has paths, addresses and a traceback. Only errors of this package are
passed on; every other error becomes `InferenceFailed`.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any

import grpc
from ray.exceptions import (
    ObjectStoreFullError,
    OutOfDiskError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app.errors import DeadlineExceeded, InferenceFailed, Overloaded, TaggerError, Unavailable

logger = logging.getLogger(__name__)

MAX_TRIES = 3
RETRY_PAUSE_S = 0.2
RESTARTING = "A part of the service is restarting. Retry in a few seconds."
DEFAULT_MESSAGE_BYTES = 4 * 2**20
"""Serve's default limit on the size of a message by value.

Source: `RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH`, ray/serve constants.
"""


class InnerCalls:
    """Calls one deployment through its handle, within a time limit."""

    def __init__(
        self,
        handle: DeploymentHandle,
        timeout_s: float,
        on_retry: Callable[[], None] = lambda: None,
        by_reference_bytes: float = math.inf,
    ) -> None:
        """Start with no call under way.

        Args:
            handle: The deployment.
            timeout_s: Time limit of a call with all its retries.
            on_retry: Called before a call is retried.
            by_reference_bytes: Payload from which a call goes by reference; by default none does.
        """
        self._by_value = handle.options(_by_reference=False)
        self._by_reference = handle.options(_by_reference=True)
        self._by_reference_bytes = by_reference_bytes
        self._timeout_s = timeout_s
        self._on_retry = on_retry

    async def __call__(
        self, method: str, *args: Any, timeout_s: float | None = None, nbytes: int = 0
    ) -> Any:
        """Call a method of some replica and return its result.

        Args:
            method: Name of the method.
            args: Its arguments.
            timeout_s: Time limit of this call; None for that of all calls.
            nbytes: Size of the arrays in `args`, which decides how they are sent.

        Raises:
            Overloaded: The deployment's queue is full.
            Unavailable: The deployment has no replica, or a replica died in every attempt.
            DeadlineExceeded: The call took longer than the time limit.
            TaggerError: The replica's error if it is one of this package, else `InferenceFailed`.
        """
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                return await self._call_with_retries(method, args, nbytes)
        except TimeoutError as error:
            raise DeadlineExceeded("The service took too long to respond. Retry.") from error

    async def _call_with_retries(self, method: str, args: tuple[Any, ...], nbytes: int) -> Any:
        for remaining in reversed(range(MAX_TRIES)):
            try:
                return await self._call_once(method, args, nbytes)
            except Exception as error:
                mapped = to_tagger_error(error)
                if not isinstance(mapped, Unavailable) or not remaining:
                    raise mapped from None
                logger.warning(
                    "a replica died during %s; retrying with another one (%s)",
                    method,
                    type(error).__name__,
                )
                self._on_retry()
                await asyncio.sleep(RETRY_PAUSE_S)
        raise AssertionError("the last attempt either returns or raises")

    async def _call_once(self, method: str, args: tuple[Any, ...], nbytes: int) -> Any:
        if nbytes < self._by_reference_bytes:
            return await getattr(self._by_value, method).remote(*args)
        try:
            return await getattr(self._by_reference, method).remote(*args)
        except _STORE_FULL as error:
            logger.warning(
                "The object store cannot take %d bytes (%s). They are sent by value, which is "
                "slower. Give the node more object_store_memory or a larger /dev/shm.",
                nbytes,
                type(error).__name__,
            )
            return await getattr(self._by_value, method).remote(*args)


_STORE_FULL = (ObjectStoreFullError, OutOfDiskError)
"""The object store is full, and nothing can be spilled to disk either."""
_REFUSALS = {
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INVALID_ARGUMENT,
}


def _is_connection_error(error: grpc.aio.AioRpcError) -> bool:
    """Return whether the connection broke during a call; False if the call itself was refused.

    Serve turns only `UNAVAILABLE` into an error of its own (ray/serve/_private/replica_result.py).
    If a process is killed during a call, the call also ends with `UNKNOWN`, `INTERNAL` or
    `CANCELLED`.
    """
    return error.code() not in _REFUSALS


def to_tagger_error(error: BaseException) -> TaggerError:
    """Return this package's error for an error of Ray, without the text of Ray's error."""
    if isinstance(error, RayTaskError):
        error = error.cause if isinstance(error.cause, Exception) else error
    match error:
        case TaggerError() if not isinstance(error, RayTaskError):
            return error
        case BackPressureError():
            return Overloaded("Every queue of the service is full. Retry in one second.")
        case RayActorError() | DeploymentUnavailableError():  # ActorDied, ActorUnavailable
            return Unavailable(RESTARTING)
        case grpc.aio.AioRpcError() if _is_connection_error(error):
            return Unavailable(RESTARTING)
        case RayError() | RayServeException():
            logger.error("an inner call failed: %s", error)
            return InferenceFailed("The service could not process the request.")
        case _:
            logger.error("an inner call failed", exc_info=error)
            return InferenceFailed("The service could not process the request.")
