"""The HTTP face over the demo checkpoint, for clients that bring their own connection."""

from collections.abc import Iterator

import pytest

from serve_app.api.app import create_app
from serve_app.config.access import Telemetry
from serve_app.demo.settings import demo_config
from serve_app.pipeline.local_tagger import LocalTagger
from tests.conftest import in_float32
from tests.http_face import served


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a running server."""
    config = in_float32(demo_config()).model_copy(
        update={"telemetry": Telemetry(request_log="off")}
    )
    with served(create_app(LocalTagger(config), config)) as url:
        yield url
