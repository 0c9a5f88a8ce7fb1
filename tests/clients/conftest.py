"""The HTTP face over the demo checkpoint, on a port of this machine, for clients that bring their own connection."""

import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from serve_app.api.app import create_app
from serve_app.demo.settings import demo_config
from serve_app.local_tagger import LocalTagger
from tests.service import free_port


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a running server."""
    config, port = demo_config(), free_port()
    running = uvicorn.Server(uvicorn.Config(create_app(LocalTagger(config), config), port=port, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    running.should_exit = True
    thread.join(timeout=10)
