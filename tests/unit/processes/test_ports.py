"""Ports that a run has for itself, and why a service cannot listen at an address.

No Ray is started.
"""

import os
import random
import socket

import pytest

from serve_app.errors import ConfigError
from serve_app.processes.ports import LOWEST_PORT, PORTS, reserved_address, reserved_block


def test_a_taken_port_is_named_with_what_to_do() -> None:
    """A service that runs already is the usual reason."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=rf"port {port} is taken .* --port"),
            reserved_address("127.0.0.1", port),
        ):
            pass
    with reserved_address("127.0.0.1", port):
        pass


def test_a_port_is_taken_before_its_service_listens() -> None:
    """HAProxy would share the port with the other service's, so the second one is refused while the
    first one starts.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with reserved_address("127.0.0.1", port):
        with (
            pytest.raises(ConfigError, match=f"port {port} is taken"),
            reserved_address("127.0.0.1", port),
        ):
            pass
        with (
            pytest.raises(ConfigError, match=f"port {port} is taken"),
            reserved_address("0.0.0.0", port),
        ):
            pass
    with reserved_address("0.0.0.0", port):
        pass


def test_two_addresses_of_a_machine_may_have_the_same_port() -> None:
    """A service at each, started at the same moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        reserved_address("127.0.0.1", port),
        reserved_address("127.0.0.2", port),
        socket.socket() as first,
    ):
        first.bind(("127.0.0.1", port))
        first.listen()


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("nowhere.invalid", "not an address or a known host name"),
        ("." * 70, "not an address or a known host name"),
        ("192.0.2.200", "not an address of this machine"),
    ],
)
def test_a_host_that_is_not_here_is_not_called_a_taken_port(host: str, reason: str) -> None:
    """Each has its own reason."""
    with pytest.raises(ConfigError, match=reason), reserved_address(host, 0):
        pass


@pytest.mark.skipif(
    not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"), reason="no IPv6"
)
@pytest.mark.parametrize("host", ["::1", "::"])
def test_addresses_of_ipv6_are_understood(host: str) -> None:
    """Loopback and all addresses."""
    with reserved_address(host, 0):
        pass


def test_two_runs_have_no_port_in_common() -> None:
    """Neither of them listens yet, and the block of the first is not free for the second."""
    with reserved_block() as first, reserved_block() as second:
        assert len(first) == len(second) == PORTS - 1
        assert set(first).isdisjoint(second)


def test_runs_that_would_take_the_same_block_get_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first port of a block that is in use stays bound; so does nothing of a block with a taken
    port.
    """
    monkeypatch.setattr(random, "shuffle", lambda blocks: None)
    with socket.socket() as taken:
        taken.bind(("", LOWEST_PORT + 5))
        with reserved_block() as first, reserved_block() as second:
            assert (first.start, second.start) == (
                LOWEST_PORT + PORTS + 1,
                LOWEST_PORT + 2 * PORTS + 1,
            )
    with reserved_block() as ports:
        assert ports.start == LOWEST_PORT + 1
