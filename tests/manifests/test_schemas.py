"""Every object of every kustomization: what an API server would have against it, and what it names
that nothing makes.
"""

import copy
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.manifests.kube import kustomizations, kustomized, problems
from tests.manifests.pods import pods_of

CLUSTER_WIDE = ("Namespace", "PriorityClass")

PERSON_MAKES = {
    ("Secret", "siglip-redis"): "the password of Redis, which is nobody else's business",
    ("Secret", "siglip-tls"): "the certificate of the service's name, such as cert-manager keeps",
    (
        "ServiceAccount",
        "siglip-batch",
    ): "what gives a job access to the bucket, which each cloud does in its own way",
}
PERSON_MAY_MAKE = {
    ("Secret", "siglip-api-keys"): "the keys of the service, where its configuration names them",
    ("Secret", "siglip-hub"): "a token of the hub, for models that are not public",
    ("Secret", "siglip-api-key"): "the key that a job shows to the service, if it wants one",
}

NAMED_BY = {
    "secretKeyRef": ("Secret", "name"),
    "secretRef": ("Secret", "name"),
    "imagePullSecrets": ("Secret", "name"),
    "certificateRefs": ("Secret", "name"),
    "secret": ("Secret", "secretName"),
    "authOptions": ("Secret", "secretName"),
    "configMapKeyRef": ("ConfigMap", "name"),
    "configMapRef": ("ConfigMap", "name"),
    "configMap": ("ConfigMap", "name"),
    "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"),
}
"""Fields whose value names another object: its kind, and the field in the value that has its
name."""
NAMES = {"serviceAccountName": "ServiceAccount", "priorityClassName": "PriorityClass"}
"""Fields whose value is the name of another object."""


def named(value: Any) -> Iterator[tuple[str, str, bool]]:
    """Every object that is named somewhere in a manifest: kind, name, and whether it may be
    missing.
    """
    if isinstance(value, list):
        for one in value:
            yield from named(one)
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        if key in NAMES:
            yield NAMES[key], inner, False
        if key in NAMED_BY:
            kind, field = NAMED_BY[key]
            for one in inner if isinstance(inner, list) else [inner]:
                if isinstance(one, dict) and (name := one.get(field) or one.get("name")):
                    yield kind, name, one.get("optional", False)
        yield from named(inner)


def identity(manifest: dict[str, Any]) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]


def test_there_are_kustomizations() -> None:
    """The others of this file go over them all, and would pass over none."""
    found = kustomizations()
    assert {"k8s/base", "k8s/jobs/batch", "k8s/jobs/scheduled"} <= set(found)
    assert "k8s/jobs/common" not in found
    assert any(" with k8s/components/" in name for name in found)


@pytest.mark.parametrize("folder", kustomizations())
def test_a_server_would_take_every_object(folder: str) -> None:
    """Its schemas and rules find nothing in any of them."""
    assert {identity(one): found for one in kustomized(folder) if (found := problems(one))} == {}


@pytest.mark.parametrize("folder", kustomizations())
def test_objects_have_names_of_their_own_and_one_namespace(folder: str) -> None:
    """Nothing is there twice, and all that can be is in the namespace `siglip`."""
    objects = kustomized(folder)
    assert [name for name, count in Counter(map(identity, objects)).items() if count > 1] == []
    namespaces = {
        identity(one): one["metadata"].get("namespace")
        for one in objects
        if one["kind"] not in CLUSTER_WIDE
    }
    assert set(namespaces.values()) <= {"siglip"}, namespaces


@pytest.mark.parametrize("folder", kustomizations())
def test_what_is_named_is_made(folder: str) -> None:
    """By the same kustomization, or by the person who is told of it; and what that person may leave
    out is marked as optional.
    """
    objects = kustomized(folder)
    made = set(map(identity, objects)) | PERSON_MAKES.keys()
    for one in objects:
        for kind, name, is_optional in named(one):
            assert (kind, name) in (PERSON_MAY_MAKE if is_optional else made), (
                f"{identity(one)} names {kind} {name}"
            )


def test_what_a_person_makes_is_used() -> None:
    """The lists above hold nothing that no manifest names."""
    everything = {
        (kind, name)
        for folder in kustomizations()
        for one in kustomized(folder)
        for kind, name, _ in named(one)
    }
    assert PERSON_MAKES.keys() | PERSON_MAY_MAKE.keys() <= everything


@pytest.mark.parametrize("folder", kustomizations())
def test_selectors_select_something(folder: str) -> None:
    """A Service or a PodDisruptionBudget whose labels no pod has does nothing, and nobody says
    so.
    """
    objects = kustomized(folder)
    labels = [pod.labels for one in objects for pod in pods_of(one)]
    for one in objects:
        if one["kind"] in ("Service", "PodDisruptionBudget"):
            selector = one["spec"]["selector"]
            wanted = selector.get("matchLabels", selector)
            assert any(wanted.items() <= found.items() for found in labels), identity(one)


@pytest.mark.parametrize("folder", kustomizations())
def test_every_object_can_be_applied(folder: str) -> None:
    """`kubectl apply` notes the whole object in an annotation of its own, and annotations may have
    256 KiB.
    """
    assert {
        identity(one): size
        for one in kustomized(folder)
        if (size := len(json.dumps(one))) > 250_000
    } == {}


def changed(folder: str, kind: str, path: str, value: Any) -> dict[str, Any]:
    """An object of a kustomization with one field changed."""
    (found,) = (copy.deepcopy(one) for one in kustomized(folder) if one["kind"] == kind)
    *way, last = (int(step) if step.isdigit() else step for step in path.split("/"))
    at = found
    for step in way:
        at = at[step]
    at[last] = value
    return found


THROUGH, NIGHTLY, BATCH, NIGHTLY_GPU = (
    f"k8s/jobs/{mode}" for mode in ("through-service", "scheduled", "batch", "scheduled-gpu")
)
GATEWAY = "k8s/overlays/l4 with k8s/components/gateway"
GPU_GROUP = "spec/rayClusterSpec/workerGroupSpecs/0"


@pytest.mark.parametrize(
    ("folder", "kind", "path", "value", "said"),
    [
        (THROUGH, "Job", "spec/backofLimit", 3, "'backofLimit' was unexpected"),
        (THROUGH, "Job", "spec/backoffLimit", "three", "is not of type"),
        (
            THROUGH,
            "Job",
            "spec/template/spec/containers/0/resources/limit",
            {},
            "'limit' was unexpected",
        ),
        (THROUGH, "Job", "apiVersion", "batch/v9", "unknown to Kubernetes"),
        (THROUGH, "Job", "kind", "Joob", "unknown to Kubernetes"),
        (
            NIGHTLY,
            "CronJob",
            "spec/jobTemplate/spec/template/spec/containers/0/imag",
            "x",
            "'imag' was unexpected",
        ),
        (BATCH, "RayJob", f"{GPU_GROUP}/maxReplica", 3, "'maxReplica' was unexpected"),
        (
            BATCH,
            "RayJob",
            f"{GPU_GROUP}/template/spec/containers/0/resource",
            {},
            "'resource' was unexpected",
        ),
        (BATCH, "RayJob", f"{GPU_GROUP}/template/metadata/label", {}, "'label' was unexpected"),
        (BATCH, "RayJob", f"{GPU_GROUP}/maxReplicas", "8", "'8' is not of type 'integer'"),
        (
            BATCH,
            "RayJob",
            f"{GPU_GROUP}/template/spec/containers/0/env/1/name",
            "HOME",
            "HOME is there twice",
        ),
        (BATCH, "RayJob", "metadata/labels/app", 1, "1 is not of type 'string'"),
        (BATCH, "RayJob", "metadata/lables", {}, "'lables' was unexpected"),
        (BATCH, "RayJob", "apiVersion", "ray.io/v1alpha1", "'ray.io/v1alpha1' is not one of"),
        (BATCH, "RayJob", "spec/managedBy", "me", "managedBy field value must be"),
        (
            NIGHTLY_GPU,
            "RayCronJob",
            "spec/jobTemplate/deletionStrategy",
            {},
            "requires either BOTH onSuccess and onFailure",
        ),
        (
            NIGHTLY_GPU,
            "RayCronJob",
            "spec/concurrencyPolicy",
            "Forbid",
            "'concurrencyPolicy' was unexpected",
        ),
        (
            GATEWAY,
            "Gateway",
            "spec/listeners/0/protocol",
            "HTTP",
            "tls must not be specified for protocols",
        ),
        (
            GATEWAY,
            "Gateway",
            "spec/listeners/0/tls/certificateRefs",
            [],
            "must be specified when mode is Terminate",
        ),
        (
            GATEWAY,
            "HTTPRoute",
            "spec/rules/0/timeouts/backendRequest",
            "76s",
            "cannot be longer than request timeout",
        ),
        (
            GATEWAY,
            "HTTPRoute",
            "spec/rules/0/matches/0/path/value",
            "/a//b",
            "must not contain '//'",
        ),
        (GATEWAY, "HTTPRoute", "spec/rules/0/retry", {"attempts": 2}, "'retry' was unexpected"),
        (GATEWAY, "PrometheusRule", "spec/groups/0/rule", [], "'rule' was unexpected"),
        (
            GATEWAY,
            "PodMonitor",
            "spec/podMetricsEndpoints/0/intervall",
            "15s",
            "'intervall' was unexpected",
        ),
    ],
)
def test_a_mistake_is_found(folder: str, kind: str, path: str, value: Any, said: str) -> None:
    """One mistake, one problem: misspelt fields, wrong types, unknown kinds, things twice, and what
    the rules of a definition forbid.
    """
    found = problems(changed(folder, kind, path, value))
    assert found
    assert all(said in one for one in found), found
