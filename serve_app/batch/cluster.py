"""The Ray cluster that a job runs on.

It is the cluster that the job was submitted to, the one that an address names, or a new one on this
machine.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from serve_app.errors import ConfigError, TaggerError
from serve_app.processes.private_ray import private_folder, private_ray

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[bool]:
    """Connect to a cluster, or start one on this machine and stop it at the end.

    A process that is already connected keeps its connection. Yields whether the cluster was started
    here.

    Args:
        address: Address of the cluster. Default: `RAY_ADDRESS`, which Ray sets in its jobs; a new
            cluster if that is not set either.

    Raises:
        ConfigError: There is no cluster at the address, or none can be started.
    """
    if ray.is_initialized():
        yield False
        return
    named = address or os.environ.get("RAY_ADDRESS")
    if not named:
        with private_folder() as folder, private_ray(folder):
            yield True
        return
    source = "--address" if address else "RAY_ADDRESS"
    _join(named, source)
    try:
        yield False
    finally:
        ray.shutdown()


def _join(address: str, source: str) -> None:
    """Connect to a cluster.

    The port is tried first, because Ray itself retries a dead address for minutes.

    Raises:
        ConfigError: There is no cluster at the address.
    """
    advice = f"correct {source} or leave it out to start Ray on this machine"
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isascii() and port.isdigit():
        try:
            server = (host.strip("[]"), int(port))
            socket.create_connection(server, timeout=CONNECT_TIMEOUT_S).close()
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"no Ray cluster answers at {address} ({error}); {advice}."
            ) from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        raise ConfigError(
            f"cannot connect to the Ray cluster {address}: {error} Start it, or {advice}."
        ) from error


def cpus() -> float:
    """Return the number of CPUs that the cluster has now."""
    return float(ray.cluster_resources().get("CPU", 1.0))


def result_of(reference: Any) -> Any:
    """Wait for a task, or a list of them, and return its result.

    Raises:
        TaggerError: The task raised it.
        RayError: Something else went wrong.
    """
    try:
        return ray.get(reference)
    except RayError as error:
        if (cause := cause_of(error)) is not None:
            raise cause from None
        raise


def on_each(
    function: Callable[..., T], calls: Iterable[tuple[Any, ...]], num_cpus: float = 0.5
) -> list[T]:
    """Call a function with each tuple of arguments and return the results.

    The calls are tasks of the cluster; without a cluster they run in this process.

    Raises:
        TaggerError: The function raised it.
    """
    if not ray.is_initialized():  # otherwise Ray would start a cluster for the first task
        return [function(*call) for call in calls]
    task = ray.remote(function).options(num_cpus=num_cpus, max_retries=3)
    results: list[T] = result_of([task.remote(*call) for call in calls])
    return results


def in_groups(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Divide items into groups of `size`; the last one may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def cause_of(error: RayError) -> TaggerError | None:
    """Return the error of this package that a worker raised; None if something else went wrong."""
    current: BaseException | None = error
    while current is not None:
        cause = getattr(current, "cause", None)
        if isinstance(current, TaggerError):
            return current
        if isinstance(cause, TaggerError):
            return cause
        current = cause if isinstance(cause, BaseException) else current.__cause__
    return None
