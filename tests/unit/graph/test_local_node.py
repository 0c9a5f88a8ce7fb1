"""Where a local service listens, and why it cannot. No Ray is started."""

import os
import socket

import pytest

from serve_app.config import parse_config
from serve_app.errors import ConfigError
from serve_app.graph.local_node import check_port_free, listening_host


def test_a_taken_port_is_named_with_what_to_do() -> None:
    """A service that runs already is the usual reason."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} is taken .* --port"):
            check_port_free("127.0.0.1", port)
    check_port_free("127.0.0.1", port)


@pytest.mark.parametrize(("host", "reason"), [("nowhere.invalid", "no known name"), ("192.0.2.200", "no address of this machine")])
def test_a_host_that_is_not_here_is_not_called_a_taken_port(host: str, reason: str) -> None:
    """Each has its own reason."""
    with pytest.raises(ConfigError, match=reason):
        check_port_free(host, 0)


@pytest.mark.skipif(not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"), reason="no IPv6")
def test_addresses_of_ipv6_are_understood() -> None:
    """Loopback and all addresses."""
    check_port_free("::1", 0)
    check_port_free("::", 0)


def test_a_local_service_listens_on_loopback_unless_told_otherwise() -> None:
    """The default is this machine only."""
    config = {"labels": ["cat"], "plugins": {"siglip": {"model": "demo"}}}
    assert listening_host(parse_config(config)) == "127.0.0.1"
    assert listening_host(parse_config(config | {"serving": {"host": "0.0.0.0"}})) == "0.0.0.0"
