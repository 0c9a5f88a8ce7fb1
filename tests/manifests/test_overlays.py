"""Each overlay of k8s/overlays: made from its configurations, and what it asks for is what they
plan.
"""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.serve.schema import ServeDeploySchema

from serve_app import __version__
from serve_app.cli import main
from serve_app.commands.k8s import MAX_APPLIED_BYTES
from serve_app.graph import profiles
from serve_app.graph.profiles import node_environment
from serve_app.hardware.detection import parse_hardware
from tests.manifests.kube import ROOT, kustomized

OVERLAYS = sorted(path.name for path in (ROOT / "k8s/overlays").iterdir())
ON_GPUS = [name for name in OVERLAYS if name not in ("cpu", "demo")]
COMPONENTS = sorted(path.name for path in (ROOT / "k8s/components").iterdir())
ANNOTATIONS_BYTES = 256 * 2**10
"""Of an object.

Source: Kubernetes, `TotalAnnotationSizeLimitB` of apimachinery/pkg/api/validation.
"""
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
NODES = {
    "t4": "Tesla-T4",
    "l4": "NVIDIA-L4",
    "a100-40g": "NVIDIA-A100-SXM4-40GB",
    "h100": "NVIDIA-H100-80GB-HBM3",
}
"""What NVIDIA's discovery labels nodes with these cards, by the cards' names in `hardware`."""
METRICS = {8080: "Ray's", 44217: "the autoscaler's", 44227: "the dashboard's", 9101: "HAProxy's"}
"""Ports of metrics.

Source: Ray's documentation, "Collecting and monitoring metrics"; `RAY_SERVE_HAPROXY_METRICS_PORT`
of Ray Serve.
"""


def configs_of(overlay: str) -> list[Path]:
    return sorted((ROOT / "k8s/overlays" / overlay).glob("config*.yaml"))


def one_of(objects: list[dict[str, Any]], kind: str, name: str = "siglip-serve") -> dict[str, Any]:
    (found,) = (one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name)
    return found


def service_of(overlay: str) -> dict[str, Any]:
    return one_of(kustomized(f"k8s/overlays/{overlay}"), "RayService")


def cluster_of(overlay: str) -> dict[str, Any]:
    cluster: dict[str, Any] = service_of(overlay)["spec"]["rayClusterConfig"]
    return cluster


def serve_config_of(overlay: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.load(service_of(overlay)["spec"]["serveConfigV2"], yaml.CSafeLoader)
    return read


def environment_of(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


def ray_containers(cluster: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The head's and each group's name, pod and first container, which is Ray's."""
    for name, group in (
        ("head", cluster["headGroupSpec"]),
        *((one["groupName"], one) for one in cluster["workerGroupSpecs"]),
    ):
        pod = group["template"]["spec"]
        yield name, pod, pod["containers"][0]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_patch_is_made_from_the_configurations(
    overlay: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Byte for byte; where it fails, `make manifests` makes them again."""
    assert main(["k8s", "render", "--config", *map(str, configs_of(overlay))]) == 0
    assert capsys.readouterr().out == (ROOT / "k8s/overlays" / overlay / "service.yaml").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_serve_is_given_what_render_prints(
    overlay: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the last character, after kustomize has read and written it; and Serve's own schema takes
    it and knows all of it.
    """
    assert main(["render", *map(str, configs_of(overlay))]) == 0
    assert service_of(overlay)["spec"]["serveConfigV2"] == capsys.readouterr().out
    read = serve_config_of(overlay)
    schema = ServeDeploySchema.model_validate(read)
    assert read.keys() <= set(ServeDeploySchema.model_fields)
    assert [application.name for application in schema.applications] == [
        yaml.safe_load(path.read_text(encoding="utf-8"))["name"] for path in configs_of(overlay)
    ]


@pytest.mark.parametrize(
    "folder",
    [
        *(f"k8s/overlays/{name}" for name in OVERLAYS),
        *(f"k8s/overlays/l4 with k8s/components/{name}" for name in COMPONENTS if name != "gpu"),
    ],
)
def test_kubectl_can_note_what_it_applied(folder: str) -> None:
    """`kubectl apply` keeps the object as compact JSON in an annotation, with <, > and & escaped as
    Go does; larger ones it refuses.
    """
    for one in kustomized(folder):
        text = (
            json.dumps(one, ensure_ascii=False, separators=(",", ":"))
            .replace("<", "\\u003c")
            .replace(">", "\\u003e")
            .replace("&", "\\u0026")
        )
        annotations = one["metadata"].get("annotations", {}) | {LAST_APPLIED: text + "\n"}
        nbytes = sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items())
        assert nbytes < ANNOTATIONS_BYTES, f"{one['kind']} {one['metadata']['name']}: {nbytes}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_render_warns_before_kubectl_refuses(overlay: str) -> None:
    """What is in the object besides the Serve config takes less than `render` leaves free for
    it.
    """
    service = service_of(overlay)
    del service["spec"]["serveConfigV2"]
    assert len(json.dumps(service)) < ANNOTATIONS_BYTES - MAX_APPLIED_BYTES


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_is_the_one_that_was_tested(overlay: str) -> None:
    """Its version and that of the image are those of this environment, in every pod the same."""
    cluster = cluster_of(overlay)
    assert cluster["rayVersion"] == ray.__version__
    images = {
        container["image"]
        for _, pod, _ in ray_containers(cluster)
        for container in (*pod["containers"], *pod.get("initContainers", ()))
    }
    assert images == {f"siglip-serve:{__version__}"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_node_has_the_environment_of_the_profile(
    overlay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of `siglip-serve env --ingress haproxy` on head and workers, but for the token,
    which is the operator's part.
    """
    monkeypatch.setattr(profiles, "find_spec", lambda _: object())  # installed in the image
    expected = node_environment("haproxy")
    assert expected.pop("RAY_AUTH_MODE") == "token"
    for name, _, container in ray_containers(cluster_of(overlay)):
        others = {"HOME": "/tmp", "HF_HOME": "/cache/huggingface"} | (
            {} if name == "head" else {"HF_HUB_OFFLINE": "1"}
        )
        assert environment_of(container) == expected | others, name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_of_the_service_dies_with_the_head(overlay: str) -> None:
    """No replica is on it (Ray's autoscaler reads no CPU), no request comes by it, and Redis has
    what it knows, by a Secret's password.
    """
    spec = service_of(overlay)["spec"]
    cluster = cluster_of(overlay)
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert node_types(cluster)["headgroup"]["resources"]["CPU"] == 0
    assert spec["excludeHeadPodFromServeSvc"] is True
    secret = {"secretKeyRef": {"name": "siglip-redis", "key": "password"}}
    assert cluster["gcsFaultToleranceOptions"] == {
        "redisAddress": "siglip-redis:6379",
        "redisPassword": {"valueFrom": secret},
    }
    (redis,) = one_of(kustomized(f"k8s/overlays/{overlay}"), "StatefulSet", "siglip-redis")["spec"][
        "template"
    ]["spec"]["containers"]
    assert redis["env"] == [{"name": "REDIS_PASSWORD", "valueFrom": secret}]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nodes_can_be_drained(overlay: str) -> None:
    """Budgets over Ray's pods are integers of what stays: a RayCluster has no scale, of which a
    share could be taken (kuberay#2662).
    """
    budgets = [
        one["spec"]
        for one in kustomized(f"k8s/overlays/{overlay}")
        if one["kind"] == "PodDisruptionBudget"
    ]
    ours = [
        spec
        for spec in budgets
        if spec["selector"]["matchLabels"].get("app.kubernetes.io/part-of") == "siglip-serve"
    ]
    assert len(ours) == len(cluster_of(overlay)["workerGroupSpecs"])
    for spec in ours:
        assert spec["minAvailable"] == 1
        assert "maxUnavailable" not in spec


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_asks_for_its_token(overlay: str) -> None:
    """The operator makes it; nothing switches it off, and nothing asks for what a RayService may
    not have.
    """
    cluster = cluster_of(overlay)
    assert cluster["authOptions"] == {"mode": "token"}
    assert all(
        "RAY_AUTH_MODE" not in environment_of(container)
        for _, _, container in ray_containers(cluster)
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_come_and_go_by_the_second_autoscaler(overlay: str) -> None:
    """With bounds for each group, whose default is two billion, and pods that are never restarted
    in place.
    """
    cluster = cluster_of(overlay)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert all(
        0 < group["minReplicas"] <= group["maxReplicas"] <= 100
        for group in cluster["workerGroupSpecs"]
    )
    assert all("restartPolicy" not in pod for _, pod, _ in ray_containers(cluster))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_may_end_as_long_as_ray_drains(overlay: str) -> None:
    """90 s: three times Ray's own drain time, which a preStop hook of `ray stop` would cut
    short.
    """
    for _, pod, _ in ray_containers(cluster_of(overlay)):
        assert (
            pod["terminationGracePeriodSeconds"] == 90 == 3 * RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
        )
        assert all("lifecycle" not in container for container in pod["containers"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_two_pods_at_least_take_requests(overlay: str) -> None:
    """Preprocessors stand in CPU pods, of which there are always two or more, and two or more
    Preprocessors in them.
    """
    cpu = cluster_of(overlay)["workerGroupSpecs"][0]
    assert (cpu["groupName"], cpu["minReplicas"] >= 2) == ("cpu", True)
    for application in serve_config_of(overlay)["applications"]:
        assert application["args"]["config"]["serving"]["preprocessor"]["min_replicas"] >= 2


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_requests_come_in_by_one_port(overlay: str) -> None:
    """Serve listens where the pods open it, the probe asks it, and the Service sends to it."""
    port = serve_config_of(overlay)["http_options"]["port"]
    (wanted,) = service_of(overlay)["spec"]["serveService"]["spec"]["ports"]
    assert (wanted["port"], wanted["targetPort"]) == (port, port)
    for name, _, container in ray_containers(cluster_of(overlay)):
        opened = {one["name"]: one["containerPort"] for one in container["ports"]}
        assert opened.get("serve") == (None if name == "head" else port)
        if name != "head":
            assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": "serve"}


def node_types(cluster: dict[str, Any]) -> dict[str, Any]:
    """What Ray's autoscaler reads from the manifest."""
    custom = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "siglip", "namespace": "siglip"},
    }
    read: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(
        custom | {"spec": copy.deepcopy(cluster)}
    )["available_node_types"]
    return read


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_deployments_ask_for_nodes_that_there_are(overlay: str) -> None:
    """Each `label_selector` is a label of one group, as Ray's autoscaler reads it, and that has no
    GPUs.
    """
    types = node_types(cluster_of(overlay))
    asked = [
        block["label_selector"]
        for application in serve_config_of(overlay)["applications"]
        for block in application["args"]["config"]["serving"].values()
        if isinstance(block, dict) and block["label_selector"]
    ]
    assert bool(asked) == (overlay in ON_GPUS)
    for selector in asked:
        (found,) = (
            name for name, kind in types.items() if selector.items() <= kind["labels"].items()
        )
        assert found == "cpu"
        assert not types[found]["resources"].get("GPU")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_cluster_grows_to_the_hardware(overlay: str) -> None:
    """GPUs of all pods at most are those that the configurations name, each in a pod of its own,
    and CPUs no more than those.
    """
    written = {
        yaml.safe_load(path.read_text(encoding="utf-8"))["hardware"] for path in configs_of(overlay)
    }
    assert len(written) == 1
    hardware = parse_hardware(written.pop())
    types = node_types(cluster_of(overlay))
    workers = [kind for name, kind in types.items() if name != "headgroup"]
    assert (
        sum(kind["max_workers"] * kind["resources"].get("GPU", 0) for kind in workers)
        == hardware.gpus
    )
    assert {kind["resources"].get("GPU", 0) for kind in workers} == (
        {0, 1} if hardware.gpus else {0}
    )
    assert sum(kind["max_workers"] * kind["resources"]["CPU"] for kind in workers) <= hardware.cpus


def takes(affinity: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a node may have the pod: one term holds, with all that it says."""
    (terms,) = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"].values()
    return any(
        all(labels.get(one["key"]) in one["values"] for one in term["matchExpressions"])
        for term in terms
    )


@pytest.mark.parametrize("overlay", ON_GPUS)
def test_gpu_pods_find_their_cards(overlay: str) -> None:
    """They tolerate the taint that keeps others off GPU nodes, go to nodes with the card of
    `hardware` only, and take a whole one.
    """
    (cpu, gpu) = cluster_of(overlay)["workerGroupSpecs"]
    pod = gpu["template"]["spec"]
    assert pod["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    kind = yaml.safe_load(configs_of(overlay)[0].read_text(encoding="utf-8"))["hardware"].split(
        "x"
    )[0]
    assert [
        name
        for name, product in NODES.items()
        if takes(pod["affinity"], {"nvidia.com/gpu.product": product})
    ] == [kind]
    assert not takes(pod["affinity"], {})
    resources = pod["containers"][0]["resources"]
    assert (
        int(resources["limits"]["nvidia.com/gpu"])
        == int(resources["requests"]["nvidia.com/gpu"])
        == 1
    )
    assert "affinity" not in cpu["template"]["spec"]
    assert "nvidia.com/gpu" not in cpu["template"]["spec"]["containers"][0]["resources"]["limits"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_fetch_what_is_served(overlay: str) -> None:
    """Every checkpoint that an application names, in every worker before it starts, into the folder
    that Ray reads it from offline.
    """
    models = {
        one["args"]["config"]["plugins"]["siglip"]["model"]
        for one in serve_config_of(overlay)["applications"]
    } - {"demo"}
    for name, pod, container in ray_containers(cluster_of(overlay)):
        if name == "head":
            continue
        (fetch,) = pod["initContainers"]
        environment = {one["name"]: one.get("value") for one in fetch["env"]}
        assert set(environment["SIGLIP_FETCH"].split()) == models
        assert environment["HF_HOME"] == environment_of(container)["HF_HOME"]
        shared = [one for one in fetch["volumeMounts"] if one in container["volumeMounts"]]
        assert any(environment["HF_HOME"].startswith(one["mountPath"]) for one in shared)


def ports_of(rule: dict[str, Any]) -> set[int]:
    return {one["port"] for one in rule.get("ports", ())}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_strangers_reach_requests_and_metrics_only(overlay: str) -> None:
    """Nothing else is open to whoever asks: what Ray's pods say among themselves is for them, the
    dashboard for the operator.
    """
    objects = kustomized(f"k8s/overlays/{overlay}")
    policies = {
        one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "NetworkPolicy"
    }
    assert policies.keys() == {"deny-all", "siglip-serve", "siglip-redis"}
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    own = policies["siglip-serve"]["podSelector"]["matchLabels"]
    for _, group in (
        ("head", cluster_of(overlay)["headGroupSpec"]),
        *((g["groupName"], g) for g in cluster_of(overlay)["workerGroupSpecs"]),
    ):
        assert own.items() <= group["template"]["metadata"]["labels"].items()
    rules = policies["siglip-serve"]["ingress"]
    to_all = [rule for rule in rules if "from" not in rule]
    assert set().union(*map(ports_of, to_all)) == {8000, *METRICS}
    assert all(rule.get("ports") for rule in to_all), "a rule without ports opens all"
    named = {
        str(peer["podSelector"]["matchLabels"]): (ports_of(rule), "namespaceSelector" in peer)
        for rule in rules
        for peer in rule.get("from", ())
    }
    labels = (
        {"app.kubernetes.io/name": "kuberay-operator"},
        {"app.kubernetes.io/component": "kuberay-operator"},
    )
    assert named == {str(own): (set(), False)} | {str(one): ({8265, 52365}, True) for one in labels}
    (rule,) = policies["siglip-redis"]["ingress"]
    assert (rule["from"], ports_of(rule)) == ([{"podSelector": {"matchLabels": own}}], {6379})
    assert "egress" not in policies["siglip-redis"]


def with_component(name: str) -> list[dict[str, Any]]:
    return kustomized(f"k8s/overlays/l4 with k8s/components/{name}")


def test_another_redis() -> None:
    """Ours is gone with all that belongs to it, and the pods may reach the other, whose password is
    where ours was.
    """
    objects = with_component("external-redis")
    assert [one["kind"] for one in objects if "redis" in one["metadata"]["name"]] == []
    options = one_of(objects, "RayService")["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert options["redisAddress"] != cluster_of("l4")["gcsFaultToleranceOptions"]["redisAddress"]
    assert options["redisPassword"] == cluster_of("l4")["gcsFaultToleranceOptions"]["redisPassword"]
    port = int(options["redisAddress"].rpartition(":")[2])
    egress = one_of(objects, "NetworkPolicy")["spec"]["egress"]
    assert any("to" not in rule and port in ports_of(rule) for rule in egress)


def test_one_volume_for_all_checkpoints() -> None:
    """All pods have it where they had a folder of their own, and many nodes may write to it."""
    objects = with_component("model-cache")
    claim = one_of(objects, "PersistentVolumeClaim", "siglip-model-cache")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for _, pod, container in ray_containers(
        one_of(objects, "RayService")["spec"]["rayClusterConfig"]
    ):
        (volume,) = (one for one in pod["volumes"] if one["name"] == "cache")
        assert volume["persistentVolumeClaim"] == {"claimName": "siglip-model-cache"}
        assert {"name": "cache", "mountPath": "/cache"} in container["volumeMounts"]


def test_checkpoints_of_the_image() -> None:
    """What looks for them before a pod starts and what serves them look where the Dockerfile puts
    them.
    """
    cluster = one_of(with_component("model-in-image"), "RayService")["spec"]["rayClusterConfig"]
    for name, pod, container in ray_containers(cluster):
        fetching = (
            []
            if name == "head"
            else [environment_of(one)["HF_HOME"] for one in pod["initContainers"]]
        )
        for folder in (environment_of(container)["HF_HOME"], *fetching):
            assert f"HF_HOME={folder}" in (ROOT / "k8s/image/Dockerfile").read_text(
                encoding="utf-8"
            )


def test_a_gateway_in_front() -> None:
    """It sends to the Service that the operator makes, takes headers away that no client may send,
    and lets the service answer first.
    """
    objects = with_component("gateway")
    route = one_of(objects, "HTTPRoute")["spec"]
    (rule,) = route["rules"]
    service = one_of(objects, "RayService")["spec"]["serveService"]
    assert rule["backendRefs"] == [
        {"name": service["metadata"]["name"], "port": service["spec"]["ports"][0]["port"]}
    ]
    (headers,) = rule["filters"]
    assert set(headers["requestHeaderModifier"]["remove"]) == {
        "x-request-timeout-seconds",
        "x-request-disconnect-disabled",
    }
    assert route["parentRefs"] == [{"name": one_of(objects, "Gateway")["metadata"]["name"]}]
    cut_s = serve_config_of("l4")["http_options"]["request_timeout_s"]
    assert (
        float(rule["timeouts"]["request"].rstrip("s"))
        > float(rule["timeouts"]["backendRequest"].rstrip("s"))
        > cut_s
    )


def test_upgrades_in_steps() -> None:
    """The options that KubeRay wants for them, and nothing else of the service is another."""
    spec = one_of(with_component("incremental-upgrade"), "RayService")["spec"]
    strategy = spec["upgradeStrategy"]
    assert strategy["type"] == "NewClusterWithIncrementalUpgrade"
    options = strategy["clusterUpgradeOptions"]
    assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] < 100
    assert options["intervalSeconds"] > 0
    assert options["gatewayClassName"]
    assert spec | {"upgradeStrategy": {"type": "NewCluster"}} == service_of("l4")["spec"]


def test_components_go_together(tmp_path: Path) -> None:
    """All that a person might want beside each other, in a copy of the folder as that person would
    have it.
    """
    copied = (
        shutil.copytree(ROOT / "k8s", tmp_path / "k8s") / "overlays" / "l4" / "kustomization.yaml"
    )
    written = yaml.safe_load(copied.read_text(encoding="utf-8"))
    wanted = ("external-redis", "model-cache", "gateway", "incremental-upgrade")
    written["components"] += [f"../../components/{name}" for name in wanted]
    copied.write_text(yaml.safe_dump(written), encoding="utf-8")
    objects = kustomized(str(copied.parent))
    alone = {
        (one["kind"], one["metadata"]["name"]) for name in wanted for one in with_component(name)
    }
    gone = {pair for pair in alone if "redis" in pair[1]}
    assert {(one["kind"], one["metadata"]["name"]) for one in objects} == alone - gone
    spec = one_of(objects, "RayService")["spec"]
    assert spec["upgradeStrategy"]["type"] == "NewClusterWithIncrementalUpgrade"
    assert spec["serveConfigV2"] == service_of("l4")["spec"]["serveConfigV2"]
