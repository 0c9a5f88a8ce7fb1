"""What matters most in every pod of every kustomization: what it may do, what it may take, and how
it ends.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.manifests.kube import kustomizations, kustomized
from tests.manifests.pods import Pod, pods_of

GRACE_S = 90
"""Ray drains for 30 s on SIGTERM, and Kubernetes' own 30 s would cut that short."""


def faults(pod: Pod) -> Iterator[str]:
    """What a pod has wrong."""
    yield from _faults_of_all(pod.spec)
    for container in pod.containers:
        yield from (f"{container['name']}: {fault}" for fault in _faults_of_one(container))
    token = pod.spec.get("automountServiceAccountToken", True)
    if token != pod.asks_kubernetes:
        yield (
            "has a token for Kubernetes' API and no use for it"
            if token
            else "has no token for Kubernetes' API and needs one"
        )
    if pod.role in ("head", "worker"):
        if pod.spec.get("terminationGracePeriodSeconds") != GRACE_S:
            yield f"has not {GRACE_S} seconds to end in"
        if any("preStop" in container.get("lifecycle", {}) for container in pod.containers):
            yield "stops Ray before it drains"


def _faults_of_all(spec: dict[str, Any]) -> Iterator[str]:
    security = spec.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or security.get("runAsUser", 0) == 0:
        yield "may be root"
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "may call all of the kernel"
    if any(map(spec.get, ("hostNetwork", "hostPID", "hostIPC"))) or any(
        "hostPath" in one for one in spec.get("volumes", ())
    ):
        yield "reaches into its host"


def _faults_of_one(container: dict[str, Any]) -> Iterator[str]:
    security = container.get("securityContext", {})
    if security.get("readOnlyRootFilesystem") is not True:
        yield "may write to its image"
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield "may get more rights"
    if security.get("capabilities") != {"drop": ["ALL"]}:
        yield "has capabilities"
    if {"runAsUser", "runAsNonRoot", "seccompProfile"} & security.keys():
        yield "has other rules than its pod"
    resources = container.get("resources", {})
    if not all(
        {"cpu", "memory"} <= resources.get(kind, {}).keys() for kind in ("requests", "limits")
    ):
        yield "asks for or may take any amount"
    name, _, version = container["image"].rpartition(":")
    if not name or "/" in version or version == "latest":
        yield "has an image of no version"


@pytest.mark.parametrize("folder", kustomizations())
def test_every_pod_is_confined(folder: str) -> None:
    """Not root, nothing written to the image, no capabilities, limits on everything, a version of
    the image, tokens where needed.
    """
    pods = [pod for one in kustomized(folder) for pod in pods_of(one)]
    assert {(pod.owner, pod.role): found for pod in pods if (found := list(faults(pod)))} == {}


def test_pods_are_found_in_every_kind() -> None:
    """Those of Ray's kinds too, and the autoscaler that the operator puts beside a head."""
    found = [
        pod for folder in kustomizations() for one in kustomized(folder) for pod in pods_of(one)
    ]
    assert {pod.owner.split()[0] for pod in found} >= {
        "RayService",
        "RayJob",
        "RayCronJob",
        "Job",
        "CronJob",
        "StatefulSet",
    }
    assert {pod.role for pod in found} == {"plain", "submitter", "head", "worker"}
    heads = [pod for pod in found if pod.role == "head"]
    assert [[one["name"] for one in pod.containers] for pod in heads] == [
        ["ray-head", "autoscaler"]
    ] * len(heads)


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change at `a/0/b`; None takes away what is there."""

    def change(spec: dict[str, Any]) -> None:
        *way, last = path.split("/")
        at: Any = spec
        for step in way:
            at = at[int(step)] if isinstance(at, list) else at.setdefault(step, {})
        if value is None:
            del at[last]
        else:
            at[last] = value

    return change


CONTAINER = "containers/0"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (_set("securityContext/runAsNonRoot", False), "may be root"),
        (_set("securityContext/runAsUser", 0), "may be root"),
        (
            _set("securityContext/seccompProfile", {"type": "Unconfined"}),
            "may call all of the kernel",
        ),
        (_set("hostNetwork", True), "reaches into its host"),
        (_set("volumes", [{"name": "host", "hostPath": {"path": "/"}}]), "reaches into its host"),
        (
            _set(f"{CONTAINER}/securityContext/readOnlyRootFilesystem", False),
            "ray-worker: may write to its image",
        ),
        (
            _set(f"{CONTAINER}/securityContext/allowPrivilegeEscalation", None),
            "ray-worker: may get more rights",
        ),
        (_set(f"{CONTAINER}/securityContext/privileged", True), "ray-worker: may get more rights"),
        (
            _set(f"{CONTAINER}/securityContext/capabilities/add", ["SYS_ADMIN"]),
            "ray-worker: has capabilities",
        ),
        (
            _set(f"{CONTAINER}/securityContext/runAsUser", 0),
            "ray-worker: has other rules than its pod",
        ),
        (
            _set(f"{CONTAINER}/resources/limits/memory", None),
            "ray-worker: asks for or may take any amount",
        ),
        (
            _set(f"{CONTAINER}/image", "siglip-serve:latest"),
            "ray-worker: has an image of no version",
        ),
        (
            _set(f"{CONTAINER}/image", "registry.example.com:5000/siglip-serve"),
            "ray-worker: has an image of no version",
        ),
        (
            _set(f"{CONTAINER}/lifecycle", {"preStop": {"exec": {"command": ["ray", "stop"]}}}),
            "stops Ray before it drains",
        ),
        (
            _set("initContainers", [{"name": "first", "image": "busybox"}]),
            "first: may write to its image",
        ),
        (_set("terminationGracePeriodSeconds", None), "has not 90 seconds to end in"),
        (
            _set("automountServiceAccountToken", None),
            "has a token for Kubernetes' API and no use for it",
        ),
    ],
)
def test_a_pod_that_is_not_is_found(change: Callable[[dict[str, Any]], None], fault: str) -> None:
    """One thing changed in a worker of ours, and it is the first that is said."""
    (job,) = (one for one in kustomized("k8s/jobs/batch") if one["kind"] == "RayJob")
    (worker,) = (pod for pod in pods_of(job) if pod.role == "worker")
    spec = copy.deepcopy(worker.spec)
    change(spec)
    assert next(faults(Pod(worker.owner, worker.role, worker.labels, spec))) == fault


def test_a_head_without_its_token_is_found() -> None:
    """Its autoscaler could ask for no workers."""
    (job,) = (one for one in kustomized("k8s/jobs/batch") if one["kind"] == "RayJob")
    (head,) = (pod for pod in pods_of(job) if pod.role == "head")
    spec = head.spec | {"automountServiceAccountToken": False}
    assert list(faults(Pod(head.owner, head.role, head.labels, spec, head.asks_kubernetes))) == [
        "has no token for Kubernetes' API and needs one"
    ]
