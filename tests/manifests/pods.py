"""The pods that a manifest asks for, whichever kind asks, as Kubernetes would see them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TEMPLATED = ("Deployment", "DaemonSet", "ReplicaSet", "StatefulSet", "Job")


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod, or many that are alike.

    Attributes:
        owner: Kind and name of what asks for it.
        role: `head`, `worker`, `submitter` or `plain`.
        labels: Its own.
        spec: Its specification. In a head that scales, the operator's autoscaler is one of the
            containers.
        asks_kubernetes: Whether something in it talks to Kubernetes' API.
    """

    owner: str
    role: str
    labels: dict[str, str]
    spec: dict[str, Any]
    asks_kubernetes: bool = False

    @property
    def containers(self) -> list[dict[str, Any]]:
        """Every container, those that run first too."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]


def pods_of(manifest: dict[str, Any]) -> list[Pod]:
    """Return the pods that an object asks for."""
    return list(
        _pods(manifest["kind"], f"{manifest['kind']} {manifest['metadata']['name']}", manifest)
    )


def _pods(kind: str, owner: str, manifest: dict[str, Any]) -> Iterator[Pod]:
    spec = manifest.get("spec", {})
    if kind == "Pod":
        yield _pod(owner, "plain", manifest)
    elif kind in TEMPLATED:
        yield _pod(owner, "plain", spec["template"])
    elif kind == "CronJob":
        yield from _pods("Job", owner, spec["jobTemplate"])
    elif kind == "RayCronJob":
        yield from _pods("RayJob", owner, {"spec": spec["jobTemplate"]})
    elif kind == "RayJob":
        yield _pod(owner, "submitter", spec["submitterPodTemplate"])
        yield from _ray_pods(owner, spec["rayClusterSpec"])
    elif kind == "RayService":
        yield from _ray_pods(owner, spec["rayClusterConfig"])


def _ray_pods(owner: str, cluster: dict[str, Any]) -> Iterator[Pod]:
    head = cluster["headGroupSpec"]["template"]
    if scales := cluster.get("enableInTreeAutoscaling", False):
        options = cluster.get("autoscalerOptions", {})
        autoscaler = {"name": "autoscaler", "image": head["spec"]["containers"][0]["image"]} | {
            key: options[key]
            for key in (
                "image",
                "imagePullPolicy",
                "env",
                "resources",
                "securityContext",
                "volumeMounts",
            )
            if key in options
        }
        head = head | {
            "spec": head["spec"] | {"containers": [*head["spec"]["containers"], autoscaler]}
        }
    yield _pod(owner, "head", head, scales)
    for group in cluster.get("workerGroupSpecs", ()):
        yield _pod(f"{owner} {group['groupName']}", "worker", group["template"])


def _pod(owner: str, role: str, template: dict[str, Any], asks_kubernetes: bool = False) -> Pod:
    return Pod(
        owner,
        role,
        template.get("metadata", {}).get("labels", {}),
        template["spec"],
        asks_kubernetes,
    )
