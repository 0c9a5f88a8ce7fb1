"""Reserves ports for one run: a block for Ray and Serve, and the address of the service."""

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
"""Number of consecutive ports in a block. Blocks start at multiples of this number above the lowest
port, so two different blocks have no port in common."""

SHARED_HOSTS = ("0.0.0.0", "::", "127.0.0.1", "::1", "localhost")
"""Hosts that share one lock per port: the wildcard addresses, and the loopback names that are often
used in their place."""


@contextlib.contextmanager
def reserved_block() -> Iterator[range]:
    """Reserve consecutive free ports, so that two services on one machine use different ports.

    The first port of the block stays bound, so that a run that starts at the same time takes
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
    """Prevent other services on this machine from taking an address before this one listens on it.

    Checking that the port is free is not enough. HAProxy and Serve's proxies share a port with
    other processes of the same user (`SO_REUSEPORT`). Two services that start at the same time
    would both listen, and each would receive some of the other's requests.

    Raises:
        ConfigError: The address is in use or reserved, is not an address of this machine, or needs
            permissions that this user does not have.
    """
    with contextlib.ExitStack() as stack:
        if sys.platform == "linux" and port:
            lock = stack.enter_context(socket.socket(socket.AF_UNIX))
            place = "" if host in SHARED_HOSTS else f"-{host}"
            # in the abstract namespace, so that the name disappears with the process
            name = f"\0siglip-serve-port-{port}{place}"
            try:
                lock.bind(name)
            except OSError as error:
                raise ConfigError(_bind_problem(error, host, port)) from error
        _check_free(host, port)
        yield


def _check_free(host: str, port: int) -> None:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(
            f"serving.host: {host!r} is not an address or a known host name; use 127.0.0.1, or "
            "0.0.0.0 for all addresses."
        ) from error
    with socket.socket(family) as probe:
        # ignore connections that have just ended
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise ConfigError(_bind_problem(error, host, port)) from error


def _bind_problem(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"port {port} is taken by another process; "
                "end it, or set serving.port or --port to another one."
            )
        case errno.EADDRNOTAVAIL:
            return (
                f"serving.host: {host} is not an address of this machine; "
                "use 127.0.0.1, or 0.0.0.0 for all addresses."
            )
        case errno.EACCES:
            return (
                f"this user may not listen on port {port}; "
                "set serving.port or --port to 1024 or more."
            )
    return f"the service cannot listen on {host}, port {port}: {error.strerror}."


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
