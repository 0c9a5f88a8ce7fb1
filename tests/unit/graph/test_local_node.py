"""Where a local service listens. No Ray is started."""

from serve_app.config.service import parse_config
from serve_app.graph.local_node import listening_host


def test_a_local_service_listens_on_loopback_unless_told_otherwise() -> None:
    """The default is this machine only."""
    config = {"labels": ["cat"], "plugins": {"siglip": {"model": "demo"}}}
    assert listening_host(parse_config(config)) == "127.0.0.1"
    assert listening_host(parse_config(config | {"serving": {"host": "0.0.0.0"}})) == "0.0.0.0"
