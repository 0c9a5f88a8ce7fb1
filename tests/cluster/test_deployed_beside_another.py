"""Two services on one cluster, each below a path of its own."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from serve_app.demo import settings as demo_settings
from tests.cluster.conftest import demo_config
from tests.service import COMMAND, START_TIMEOUT_S, Service, wait_for

PICTURE = (Path(demo_settings.__file__).parent / "samples" / "red-circle.jpg").read_bytes()
NO_CPU = {"num_cpus": 0, "num_replicas": 1}  # the first one has them all


@pytest.fixture
def second(service: Service, tmp_path: Path) -> Iterator[str]:
    """Deploy a second service with other labels beside the first, and take it away again."""
    serving = dict.fromkeys(
        ("preprocessor", "image_encoder", "text_encoder", "postprocessor"), NO_CPU
    )
    config = demo_config() | {
        "name": "second",
        "labels": ["circle", "star"],
        "serving": serving | {"route_prefix": "/second"},
    }
    config["serving"]["port"] = service.config["serving"]["port"]
    path = tmp_path / "second.yaml"
    path.write_text(yaml.safe_dump(config))
    api = "/api/serve/applications/"
    first = [one["deployed_app_config"] for one in service.ask(api).json()["applications"].values()]
    subprocess.run(
        [COMMAND, "deploy", str(path), "--address", service.cluster],
        check=True,
        capture_output=True,
        timeout=START_TIMEOUT_S,
    )
    yield f"{service.url}/second"
    service.ask(api, "PUT", json={"applications": first}).raise_for_status()
    wait_for(lambda: set(service.ask(api).json()["applications"]) == {first[0]["name"]})


def test_each_answers_below_its_path(service: Service, second: str) -> None:
    """Tags of their own labels, and the page, its files and the document below the prefix."""
    wait_for(lambda: httpx.get(f"{second}/readyz").status_code == 200)
    own = httpx.post(f"{second}/v1/tag", content=PICTURE, timeout=60).json()
    first = httpx.post(f"{service.url}/v1/tag", content=PICTURE, timeout=60).json()
    assert [tag["label"] for tag in own["tags"]] == ["circle"]
    assert "red circle" in [tag["label"] for tag in first["tags"]]
    page = httpx.get(second, follow_redirects=True)
    assert (page.status_code, page.url.path) == (200, "/second/")
    assert httpx.get(f"{second}/page/page.js").headers["content-type"].startswith("text/javascript")
    assert httpx.get(f"{second}/openapi.json").json()["servers"] == [{"url": "/second"}]
    assert httpx.get(f"{second}/nothing").json()["error"]["code"] == "not_found"
    assert httpx.post(f"{second}x/v1/tag", content=PICTURE).status_code == 404
