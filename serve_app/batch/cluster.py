"""The Ray cluster that a job runs on: the one it was submitted to, one that an address names, or
one on this machine.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from serve_app.errors import ConfigError, TaggerError
from serve_app.processes.private_ray import private_folder, private_ray

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[bool]:
    """Connect to a cluster, or start one on this machine and end it on the way out; yield whether
    it was started here.

    A process that is connected already keeps its connection.

    Args:
        address: Of the cluster; None for what `RAY_ADDRESS` says, as it does in a Ray job, and else
            for a new one.

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
    """Connect to a cluster, or say at once that there is none: Ray itself asks a dead address for
    minutes.
    """
    advice = f"correct {source} or leave it out to start Ray on this machine"
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isascii() and port.isdigit():
        try:
            socket.create_connection(
                (host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S
            ).close()
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
    """Return the CPUs that the cluster has now."""
    return float(ray.cluster_resources().get("CPU", 1.0))


def result_of(reference: Any) -> Any:
    """Wait for a task, or a list of them, and return its result.

    Raises:
        TaggerError: What the task raised of ours.
        RayError: What else went wrong.
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
    """Return what a function returns for each tuple of arguments: by tasks of the cluster, or in
    this process where there is none.

    Raises:
        TaggerError: What the function raised of ours.
    """
    if not ray.is_initialized():  # Ray would start a cluster of its own for the first task
        return [function(*call) for call in calls]
    task = ray.remote(function).options(num_cpus=num_cpus, max_retries=3)
    results: list[T] = result_of([task.remote(*call) for call in calls])
    return results


def cause_of(error: RayError) -> TaggerError | None:
    """Return the error of ours that a worker raised, or None where something else went wrong."""
    at: BaseException | None = error
    while at is not None:
        cause = getattr(at, "cause", None)
        if isinstance(at, TaggerError):
            return at
        if isinstance(cause, TaggerError):
            return cause
        at = cause if isinstance(cause, BaseException) else at.__cause__
    return None
