"""One service on the demo checkpoint for most tests of this folder."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from serve_app.demo.settings import demo_labels
from tests.service import Service

DEMO: dict[str, Any] = {
    "name": "siglip-demo",
    "labels": demo_labels(),
    "plugins": {
        "siglip": {
            "model": "demo",
            "dtype": "float32",
            "batch_size": 16,
            "confidence_threshold": 0.5,
            "max_tags": 20,
        }
    },
    "telemetry": {
        "tracing": {"enabled": True, "sampling_ratio": 0.0}
    },  # only what a client asks to have traced
    "serving": {
        "preprocessor": {"num_cpus": 0.5},
        "image_encoder": {"num_cpus": 1},
        "text_encoder": {"num_cpus": 0.25},
        "postprocessor": {"num_cpus": 0.25},
    },
}


def demo_config(**siglip: Any) -> dict[str, Any]:
    """Return the demo's configuration with some keys of the plugin changed."""
    config = copy.deepcopy(DEMO)
    config["plugins"]["siglip"] |= siglip
    return config


@pytest.fixture(scope="package")
def running() -> Iterator[Service]:
    """The service, started once."""
    service = Service(demo_config())
    try:
        yield service.wait_until_ready()
    finally:
        service.stop()


@pytest.fixture
def service(running: Service) -> Service:
    """The service on the demo checkpoint, deployed as at first if a test before changed it."""
    if running.path.read_text() != yaml.safe_dump(running.config):
        running.deploy(running.config)
    return running
