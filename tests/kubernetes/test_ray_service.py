"""What the manifests say, on real Ray processes in network namespaces: the service answers whatever
happens to its pods.
"""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve_app.cli import main
from serve_app.demo.settings import demo_config, demo_labels
from serve_app.pipeline.local_tagger import LocalTagger
from serve_app.tagging.options import TagOptions
from tests.kubernetes.cluster import DASHBOARD_PORT, SERVE_PORT, RayService, wait_until
from tests.kubernetes.load import SAMPLES, Load
from tests.kubernetes.network import Pod, PodNetwork, why_not
from tests.service import START_TIMEOUT_S

ROOT = Path(__file__).parents[2]
METRICS_PORTS = {8080, 44217, 44227, 9101}
OVERLAY = "l4"

if reason := why_not() or next(
    (f"there is no {name}" for name in ("kubectl", "redis-server") if shutil.which(name) is None),
    None,
):
    pytest.skip(reason, allow_module_level=True)


class Overlay:
    """The overlay of four L4 with the demo's labels, as a person makes one of their own: another
    configuration, rendered again.
    """

    def __init__(self, folder: Path) -> None:
        shutil.copytree(ROOT / "k8s", folder / "k8s")
        shutil.copytree(ROOT / "configs", folder / "configs")
        self.folder = folder / "k8s/overlays" / OVERLAY
        self.config: dict[str, Any] = yaml.safe_load((self.folder / "config.yaml").read_text()) | {
            "labels": demo_labels()
        }
        self.config["plugins"]["siglip"] |= {"confidence_threshold": 0.5, "max_tags": 20}

    def render(self, **plugin: Any) -> list[dict[str, Any]]:
        """Return what `kubectl apply -k` would send."""
        self.config["plugins"]["siglip"] |= plugin
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config))
        assert (
            main(
                [
                    "k8s",
                    "render",
                    "--config",
                    str(self.folder / "config.yaml"),
                    "--out",
                    str(self.folder / "service.yaml"),
                ]
            )
            == 0
        )
        made = subprocess.run(
            ["kubectl", "kustomize", str(self.folder)], capture_output=True, text=True, check=True
        )
        return [found for found in yaml.safe_load_all(made.stdout) if found]

    def serve_config(self, **plugin: Any) -> str:
        """Return the Serve config of a changed configuration."""
        (service,) = (one for one in self.render(**plugin) if one["kind"] == "RayService")
        return str(service["spec"]["serveConfigV2"])


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    return Overlay(tmp_path_factory.mktemp("overlay"))


@pytest.fixture(scope="module")
def key() -> tuple[str, str]:
    """An API key and its line."""
    from serve_app.api.keys import make_key

    made = make_key("tester")
    return made.key, made.line


@pytest.fixture(scope="module")
def service(
    overlay: Overlay, key: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RayService]:
    """Head, Redis, two CPU pods, two pods with a pretended GPU, and a gateway, as the overlay
    declares them.
    """
    manifests = overlay.render()
    (manifest,) = (one for one in manifests if one["kind"] == "RayService")
    network = PodNetwork(tmp_path_factory.mktemp("pods"))
    try:
        running = RayService(network, manifest, key[1])
        network.apply_policies([one for one in manifests if one["kind"] == "NetworkPolicy"])
        running.start()
        running.deploy(manifest["spec"]["serveConfigV2"])
        running.wait_until_running()
        yield running
    finally:
        network.close()


def test_pods_have_what_the_manifest_declares(service: RayService) -> None:
    """No CPU on the head, GPUs on one group; every deployment stands where it belongs, two of what
    two are asked for.
    """
    nodes = {node["node_ip"]: node["resources_total"] for node in service.nodes()}
    assert len(nodes) == 5
    assert "CPU" not in nodes[service.head.address]
    gpus = {pod.address for name, pod in service.workers.items() if name.startswith("gpu")}
    assert {address for address, resources in nodes.items() if resources.get("GPU") == 1} == gpus
    assert all(nodes[pod.address]["CPU"] == 3 for pod in service.workers.values())
    replicas = service.replicas()
    assert {name: len(found) for name, found in replicas.items()} == {
        "Preprocessor": 2, "ImageEncoder": 2, "Postprocessor": 2, "TextEncoder": 1,
    }  # fmt: skip
    for deployment, found in replicas.items():
        assert set(found.values()) <= (
            gpus if "Encoder" in deployment else set(nodes) - gpus - {service.head.address}
        )
    assert len(set(replicas["Preprocessor"].values())) == 2, "one of two pods may go"


def test_it_tags_and_asks_for_a_key(service: RayService, key: tuple[str, str]) -> None:
    """Through the gateway, what LocalTagger says; nothing without a key."""
    tagger = LocalTagger(demo_config())
    (image,) = tagger.tag_images([SAMPLES[0]], TagOptions())
    with Load(service, key[0], clients=1) as load:
        load.wait_for_answers(3)
    assert not load.failed
    found = service.client.call(
        lambda: httpx.post(
            f"{service.url}/v1/tag", content=SAMPLES[0], headers={"X-Api-Key": key[0]}, timeout=60
        )
    )
    assert [tag["label"] for tag in found.json()["tags"]] == [tag.label for tag in image.tags]
    refused = service.client.call(
        lambda: httpx.post(f"{service.url}/v1/tag", content=SAMPLES[0], timeout=60)
    )
    assert refused.status_code == 401


async def opens(pod: Pod, port: int) -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(pod.address, port), timeout=2)
    except OSError:
        return False
    writer.close()
    return True


def open_ports(by: Pod, pod: Pod, ports: set[int]) -> set[int]:
    """Return those of a pod's ports that answer another pod."""

    async def ask() -> set[int]:
        answers = await asyncio.gather(*[opens(pod, port) for port in ports])
        return {port for port, answer in zip(ports, answers, strict=True) if answer}

    return by.call(lambda: asyncio.run(ask()))


def test_only_the_service_and_metrics_answer_strangers(service: RayService) -> None:
    """Of all that listens on every pod; within the pods' network more does, so it is the policy
    that closes it.
    """
    for pod in (service.head, service.redis, *service.workers.values()):
        allowed = set() if pod is service.redis else {SERVE_PORT, *METRICS_PORTS}
        listening = pod.listening()
        assert listening - allowed, f"{pod.name} listens on {listening}"
        assert open_ports(service.client, pod, listening) <= allowed
    cpu = service.workers["cpu-0"]
    dashboard = {DASHBOARD_PORT}
    assert {SERVE_PORT, 8080} <= open_ports(service.client, cpu, cpu.listening())
    assert (
        open_ports(cpu, service.head, dashboard)
        == open_ports(service.operator, service.head, dashboard)
        == dashboard
    )
    assert (
        open_ports(service.client, service.head, dashboard)
        == open_ports(service.gateway, service.head, dashboard)
        == set()
    )


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/version"),
        ("GET", "/api/jobs/"),
        ("POST", "/api/jobs/"),
        ("PUT", "/api/serve/applications/"),
    ],
)
@pytest.mark.parametrize("token", [None, "wrong"])
def test_the_dashboard_refuses_without_the_token(
    service: RayService, method: str, path: str, token: str | None
) -> None:
    """Also those whom the network lets through: nobody runs jobs or changes the service."""
    content = {} if method == "GET" else {"json": {"entrypoint": "true", "applications": []}}
    assert service.ask(method, path, token=token, **content).status_code in (401, 403)
    assert service.ask("GET", "/api/version").status_code == 200
    assert service.replicas()["ImageEncoder"]


def test_a_new_configuration_fails_no_request(
    service: RayService, overlay: Overlay, key: tuple[str, str]
) -> None:
    """Other labels in place, then another batch size, for which every replica is replaced: under
    load, all answered with tags.
    """
    before = service.replicas()
    with Load(service, key[0]) as load:
        load.wait_for_answers(20)
        old = load.answers[-1].fingerprint
        overlay.config["labels"] = demo_labels()[:20]
        service.deploy(overlay.serve_config())
        wait_until(
            lambda: load.answers[-1].fingerprint not in ("", old), START_TIMEOUT_S, service.head
        )
        assert service.replicas() == before, "labels change in place"
        service.deploy(overlay.serve_config(batch_size=8))
        wait_until(
            lambda: (
                not any(
                    set(before[name]) & set(found) for name, found in service.replicas().items()
                )
            ),
            START_TIMEOUT_S,
            service.head,
        )
        service.wait_until_running()
        load.wait_for_answers(20)
    assert not load.failed, load.outcomes
    assert {one.fingerprint for one in load.answers[:20]} == {old}
    assert len({one.fingerprint for one in load.answers}) == 2


@pytest.mark.parametrize("name", ["gpu-1", "cpu-1"])
def test_a_lost_pod_does_not_end_the_service(
    service: RayService, key: tuple[str, str], name: str
) -> None:
    """Its machine dies at once.

    Requests go on, replicas start elsewhere or in the pod that takes its place, and all is well
    again.
    """
    with Load(service, key[0]) as load:
        load.wait_for_answers(20)
        service.workers[name].kill()
        killed_s = time.monotonic()
        load.wait_for_answers(20)
        assert load.since(killed_s), "answered without the pod"
        service.start_worker(name)
        service.wait_until_running()
        recovered_s = time.monotonic()
        load.wait_for_answers(40)
    assert {one.outcome for one in load.since(recovered_s)} == {"200"}
    lost = len(load.failed)
    print(
        f"{name}: {lost} of {len(load.answers)} failed: {load.outcomes}, "
        f"longest {max(one.seconds for one in load.answers):.1f} s"
    )
    assert lost <= 0.05 * len(load.answers), (load.outcomes, load.failed[:5])


def test_the_head_dies_and_comes_back(service: RayService, key: tuple[str, str]) -> None:
    """No request fails while it is gone nor when it returns: it finds everything in Redis, and the
    workers are the same.
    """
    before = service.replicas()
    with Load(service, key[0]) as load:
        load.wait_for_answers(20)
        service.head.kill()
        load.wait_for_answers(40)
        assert not service.dashboard_answers()
        service.start_head()
        wait_until(lambda: len(service.nodes()) == 5, START_TIMEOUT_S, service.head)
        service.wait_until_running()
        load.wait_for_answers(20)
    assert not load.failed, load.outcomes
    assert service.replicas() == before
    assert service.ask("GET", "/api/version", token=None).status_code == 401
