"""Ports of this machine that a run has for itself: a block for Ray and Serve, and the address that
the service listens on.
"""

import contextlib
import errno
import random
import socket
import sys
from collections.abc import Iterator

from serve_app.errors import ConfigError

LOWEST_PORT = 20_000
HIGHEST_PORT = 29_900
"""The range is below Serve's own range for replicas (30,000) and the kernel's for outgoing
connections (32,768)."""
PORTS = 64
"""Number of consecutive ports of a block. Blocks begin at multiples of it from the lowest port, so
two runs have either the same block or no port in common."""

EVERYWHERE = ("0.0.0.0", "::", "127.0.0.1", "::1", "localhost")
"""Hosts of which only one service at a time may have a port: all addresses, and those that they are
most often mixed up with."""


@contextlib.contextmanager
def reserved_block() -> Iterator[range]:
    """Reserve consecutive free ports, so that two services on one machine never use each other's.

    The first port of the block stays bound, so that a run which starts at the same moment takes
    another block.

    Yields:
        The other ports of the block.

    Raises:
        ConfigError: No block is free.
    """
    blocks = list(range(LOWEST_PORT, HIGHEST_PORT - PORTS, PORTS))
    random.shuffle(blocks)
    for first in blocks:
        with socket.socket() as reservation:
            try:
                reservation.bind(("", first))
            except OSError:
                continue
            ports = range(first + 1, first + PORTS)
            if all(_is_free(port) for port in ports):
                yield ports
                return
    raise ConfigError(
        f"found no {PORTS} consecutive free ports between {LOWEST_PORT} and {HIGHEST_PORT}; stop "
        "another service."
    )


@contextlib.contextmanager
def reserved_address(host: str, port: int) -> Iterator[None]:
    """Keep other services of this machine from taking an address before this one listens there.

    A free port is not enough: HAProxy and Serve's proxies share a port with others of the same user
    (`SO_REUSEPORT`), so two services that start at the same moment would both listen, and each
    would get some of the other's requests.

    Raises:
        ConfigError: Something listens there already or is about to, it is no address of this
            machine, or this user may not listen there.
    """
    with contextlib.ExitStack() as stack:
        if sys.platform == "linux" and port:
            lock = stack.enter_context(socket.socket(socket.AF_UNIX))
            place = "" if host in EVERYWHERE else f"-{host}"
            try:
                lock.bind(
                    f"\0siglip-serve-port-{port}{place}"
                )  # a name in the abstract namespace, which ends with the process
            except OSError as error:
                raise ConfigError(_why_not(error, host, port)) from error
        _check_free(host, port)
        yield


def _check_free(host: str, port: int) -> None:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(
            f"serving.host: {host!r} is no address and no known name; use 127.0.0.1, or 0.0.0.0 "
            "for all."
        ) from error
    with socket.socket(family) as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # connections that just ended do not matter
        try:
            probe.bind(address)
        except OSError as error:
            raise ConfigError(_why_not(error, host, port)) from error


def _why_not(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"port {port} is taken by another process; "
                "end it, or set serving.port or --port to another one."
            )
        case errno.EADDRNOTAVAIL:
            return (
                f"serving.host: {host} is no address of this machine; "
                "use 127.0.0.1, or 0.0.0.0 for all."
            )
        case errno.EACCES:
            return (
                f"port {port} needs more rights than this user has; "
                "set serving.port or --port to 1024 or more."
            )
    return f"the service cannot listen at {host}, port {port}: {error.strerror}."


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
