"""Replicas that follow the load on a Ray that is told of two GPUs, and never ask for more than
those hold.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from serve_app.config.service import load_config
from serve_app.graph.deploy import Cluster
from tests.cluster.conftest import demo_config
from tests.pretend_gpus import HARDWARE, plan_for_pretend_gpus
from tests.service import free_port

SAMPLES = Path(__file__).parents[2] / "serve_app" / "demo" / "samples"
LOAD_S = 240.0
SHRINK_S = 90.0


@pytest.fixture
def pretended(tmp_path: Path) -> Iterator[tuple[Cluster, Path]]:
    """A service on two pretend GPUs: its cluster, and its configuration."""
    config = demo_config(dtype="auto", attention="eager", quantization="8bit") | {
        "hardware": HARDWARE
    }
    config["serving"] = {
        "port": free_port(),
        "ingress": "python",
        "scale_down_delay_s": 5,
        "preprocessor": {"num_replicas": 1, "num_cpus": 0.5},
        "text_encoder": {"min_replicas": 0},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.pretend_gpus", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        ready = process.stdout.readline().split()
        assert ready[:1] == ["Ready"], ready
        yield Cluster(ready[1]), path
    finally:
        process.stdin.close()
        process.wait(timeout=90)


def running(cluster: Cluster, deployment: str = "ImageEncoder") -> int:
    replicas = cluster.application("siglip-demo")["deployments"][deployment]["replicas"]
    return sum(replica["state"] == "RUNNING" for replica in replicas)


def wait_for(
    cluster: Cluster, replicas: int, timeout_s: float, deployment: str = "ImageEncoder"
) -> list[int]:
    """Return the numbers of running replicas that were seen until there were as many as wanted."""
    seen = []
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and (not seen or seen[-1] != replicas):
        seen.append(running(cluster, deployment))
        time.sleep(1)
    return seen


def test_replicas_follow_the_load_up_to_what_the_gpus_hold(pretended: tuple[Cluster, Path]) -> None:
    """Base on two L4 plans two encoders a GPU; load makes all four run, placed by Serve; its end
    leaves one. No request fails.

    The TextEncoder, which may go to zero, ends when idle and starts again for new labels. What the
    configuration asked for is what the live model says it runs as.
    """
    cluster, path = pretended
    config = load_config(path)
    image = plan_for_pretend_gpus(config).deployments["image_encoder"]
    assert (image.min_replicas, image.max_replicas) == (1, 4)
    assert 0 < image.num_gpus < 0.5
    assert running(cluster) == 1
    assert sum(node["resources"].get("GPU", 0) for node in cluster.nodes()) == 2

    url = f"http://127.0.0.1:{config.serving.port}/v1/tag"
    pictures = [str(picture) for picture in sorted(SAMPLES.glob("*.jpg"))]
    picture = Path(pictures[0]).read_bytes()
    command = [
        sys.executable,
        "-m",
        "bench.load",
        url,
        *pictures,
        "--clients",
        "240",
        "--seconds",
        str(LOAD_S),
    ]
    load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        grown = wait_for(cluster, image.max_replicas, LOAD_S)
        assert grown[-1] == image.max_replicas, grown
        assert httpx.post(url, content=picture, timeout=60).json()["tags"]
    finally:
        load.terminate()  # ends it after the requests that are under way
        measured = json.loads(load.communicate(timeout=60)[0])
    assert measured["failed"] == 0, measured
    shrunk = wait_for(cluster, 1, SHRINK_S)
    assert shrunk[-1] == 1, shrunk
    assert max(grown + shrunk) <= image.max_replicas

    card = httpx.get(url.replace("/v1/tag", "/v1/model"), timeout=30).json()
    assert (card["dtype"], card["attention"], card["quantization"], card["batch_size"]) == (
        "float32",
        "eager",
        "8bit",
        16,
    )
    assert wait_for(cluster, 0, SHRINK_S, "TextEncoder")[-1] == 0
    new = httpx.post(
        url,
        params={"labels": "red circle,violet ellipse", "confidence_threshold": 0},
        content=picture,
        timeout=90,
    )
    assert {tag["label"] for tag in new.json()["tags"]} == {"red circle", "violet ellipse"}
