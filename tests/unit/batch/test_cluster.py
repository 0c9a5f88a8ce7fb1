"""Clusters that a job cannot join. No Ray is started."""

import socket

import pytest

from serve_app.batch.cluster import connected
from serve_app.errors import ConfigError


def dead_address() -> str:
    """Return an address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_an_old_address_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    """The sentence names the variable that holds it; Ray would try for minutes."""
    address = prefix + dead_address()
    monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(
            ConfigError, match=f"no Ray cluster answers at {address} .*correct RAY_ADDRESS"
        ),
        connected(None),
    ):
        pass
    with pytest.raises(ConfigError, match="correct --address"), connected(address):
        pass


def test_what_is_no_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With Ray's reason and what to do."""
    with pytest.raises(ConfigError, match=r"cluster nonsense: .*--address"), connected("nonsense"):
        pass
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:99999")
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:99999"), connected(None):
        pass
