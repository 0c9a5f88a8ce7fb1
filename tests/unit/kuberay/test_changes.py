"""What a change of a RayService does, by the facts that KubeRay's and Ray's sources give."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from serve_app.config.service import ServiceConfig, parse_config
from serve_app.errors import ConfigError
from serve_app.graph.serve_config import serve_config_text
from serve_app.kuberay.changes import LAST_APPLIED, as_applied, compare
from serve_app.kuberay.effects import Effect
from serve_app.kuberay.groups import plan_for, worker_groups
from serve_app.kuberay.patch import apply_patch, ray_service_patch
from tests.manifests.custom_kinds import defaulted, schema_of
from tests.manifests.kube import ROOT, kustomized

IN_PLACE = Effect.IN_PLACE
ROLLING = Effect.ROLLING
NOT_TAKEN = Effect.NOT_TAKEN
NEW = Effect.NEW_CLUSTER
OVERLAYS = sorted(path.name for path in (ROOT / "k8s/overlays").iterdir())
CONFIG: dict[str, Any] = {
    "name": "tags",
    "hardware": "cpu32",
    "plugins": {"siglip": {"model": "google/siglip2-base-patch16-224", "batch_size": 4}},
    "labels": ["cat", "dog"],
    "serving": {
        "image_encoder": {"num_cpus": 6, "min_replicas": 2, "max_replicas": 4},
        "preprocessor": {"num_cpus": 1, "min_replicas": 2, "max_replicas": 4},
        "text_encoder": {"num_cpus": 0.5},
        "postprocessor": {"num_cpus": 0.5, "num_replicas": 2},
    },
}


def merged(written: dict[str, Any], edit: dict[str, Any]) -> dict[str, Any]:
    """A configuration with some keys changed, deep."""
    both = {
        key: merged(written[key], value)
        for key, value in edit.items()
        if isinstance(value, dict) and isinstance(written.get(key), dict)
    }
    return written | edit | both


def manifest_of(*written: dict[str, Any]) -> dict[str, Any]:
    """The RayService of k8s/base with what follows from configurations; `kubectl kustomize` gives
    the same (`test_patch`).
    """
    configs: list[ServiceConfig] = [parse_config(copy.deepcopy(one)) for one in written]
    base = yaml.safe_load((ROOT / "k8s/base/rayservice.yaml").read_text(encoding="utf-8"))
    groups = worker_groups([plan_for(config) for config in configs])
    return apply_patch(base, ray_service_patch(serve_config_text(*configs), groups, configs))


def told(running: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Effect]:
    """What differs and its effect, by where it is."""
    changes = compare(running, wanted)
    found = {change.where: change.effect for change in changes}
    assert len(found) == len(changes), "each once"
    assert all(change.why for change in changes)
    return found


SIGLIP = "tags: args.config.plugins.siglip"
SERVING = "tags: args.config.serving"
POD = "worker group cpu.template.spec"

EDITS: list[tuple[str, dict[str, Any], dict[str, Effect]]] = [
    ("nothing", {}, {}),
    # user_config: `reconfigure` is called on replicas that run
    (
        "threshold",
        {"plugins": {"siglip": {"confidence_threshold": 0.3}}},
        {"tags: Postprocessor.user_config": IN_PLACE},
    ),
    ("labels", {"labels": ["cat", "bird"]}, {"tags: Postprocessor.user_config": IN_PLACE}),
    (
        "batch wait",
        {"serving": {"batch_wait_timeout_s": 0.01}},
        {"tags: Preprocessor.user_config": IN_PLACE},
    ),
    (
        "queue",
        {"serving": {"preprocessor": {"max_queued_requests": 99}}},
        {"tags: Preprocessor.max_queued_requests": IN_PLACE},
    ),
    # args are in the code version of an application, so each of its replicas restarts
    ("batch size", {"plugins": {"siglip": {"batch_size": 2}}}, {f"{SIGLIP}.batch_size": ROLLING}),
    ("dtype", {"plugins": {"siglip": {"dtype": "float32"}}}, {f"{SIGLIP}.dtype": ROLLING}),
    (
        "most encoders",
        {"serving": {"image_encoder": {"max_replicas": 3}}},
        {f"{SERVING}.image_encoder.max_replicas": ROLLING},
    ),
    ("keys", {"access": {"api_keys": "env"}}, {"tags: args.config.access.api_keys": ROLLING}),
    # values inside of an autoscaling_config are not in it, but that there is one is
    (
        "fixed number",
        {"serving": {"postprocessor": {"num_replicas": 1}}},
        {"tags: Postprocessor.autoscaling_config": IN_PLACE},
    ),
    (
        "number to auto",
        {"serving": {"postprocessor": {"num_replicas": "auto"}}},
        {
            f"{SERVING}.postprocessor.num_replicas": ROLLING,
            "tags: Postprocessor.autoscaling_config": ROLLING,
        },
    ),
    # nor is the policy of the application left out of it
    (
        "scale down",
        {"serving": {"scale_down_delay_s": 60}},
        {"tags: autoscaling_policy.policy_kwargs.scale_down_delay_s": ROLLING},
    ),
    ("route", {"serving": {"route_prefix": "/tags"}}, {"tags: route_prefix": IN_PLACE}),
    # http_options are taken when Serve starts
    ("port", {"serving": {"port": 9000}}, {"http_options": NOT_TAKEN}),
    (
        "time-out",
        {"serving": {"request_timeout_s": 30}},
        {"http_options": NOT_TAKEN, f"{SERVING}.request_timeout_s": ROLLING},
    ),
    # another application of another name
    ("name", {"name": "other"}, {"application other": IN_PLACE, "application tags": IN_PLACE}),
    # what pods fetch is in an init container, so a pod is another one, and the hash of
    # rayClusterConfig
    (
        "model",
        {"plugins": {"siglip": {"model": "google/siglip-base-patch16-224"}}},
        # another vocabulary of tokens, and so pods of another size
        {
            f"{POD}.initContainers[0].env[0].value": NEW,
            f"{POD}.containers[0].resources": NEW,
            "serveConfigV2": NEW,
        },
    ),
    (
        "revision",
        {"revision": "main"},
        {f"{POD}.initContainers[0].env[0].value": NEW, "serveConfigV2": NEW},
    ),
    # larger batches take more memory, so pods of another size
    (
        "large batch",
        {"plugins": {"siglip": {"batch_size": 64}}},
        {f"{POD}.containers[0].resources": NEW, "serveConfigV2": NEW},
    ),
    # bounds of groups are not in the hash, and so they stay in the running RayCluster as they are
    (
        "most Preprocessors",
        {
            "serving": {
                "preprocessor": {"max_replicas": 5, "num_cpus": 1},
                "image_encoder": {"max_replicas": 5},
            }
        },
        {
            "worker group cpu: maxReplicas 4 → 5": NOT_TAKEN,
            f"{SERVING}.preprocessor.max_replicas": ROLLING,
            f"{SERVING}.image_encoder.max_replicas": ROLLING,
        },
    ),
]


@pytest.mark.parametrize(
    ("edit", "expected"),
    [(edit, expected) for _, edit, expected in EDITS],
    ids=[name for name, _, _ in EDITS],
)
def test_edits_of_a_configuration(edit: dict[str, Any], expected: dict[str, Effect]) -> None:
    """Through rendering, planning and the patch, to what each difference does: once each, and
    nothing besides.
    """
    found = told(manifest_of(CONFIG), manifest_of(merged(CONFIG, edit)))
    assert {
        where.replace(".limits.memory", "").replace(".requests.memory", ""): effect
        for where, effect in found.items()
    } == expected


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A function that puts a value into a manifest, or takes it out if it is `...`."""

    def put(manifest: dict[str, Any]) -> None:
        *way, last = (int(step) if step.lstrip("-").isdigit() else step for step in path.split("/"))
        at = manifest
        for step in way:
            at = at[step]
        if value is ...:
            del at[last]
        elif isinstance(at, list) and last == len(at):
            at.append(value)
        else:
            at[last] = value

    return put


CLUSTER = "spec/rayClusterConfig"
GROUP = "spec/rayClusterConfig/workerGroupSpecs/0"
HEAD_POD = "rayClusterConfig.headGroupSpec.template"
MORE = {"groupName": "more", "minReplicas": 0, "maxReplicas": 1}
TOLERATIONS = [{"key": "a", "operator": "Exists"}]
MANIFEST_EDITS: list[tuple[str, list[tuple[str, Any]], dict[str, Effect]]] = [
    # in the hash of rayClusterConfig
    (
        "image",
        [(f"{GROUP}/template/spec/containers/0/image", "siglip-serve:9")],
        {f"{POD}.containers[0].image": NEW},
    ),
    (
        "environment",
        [(f"{GROUP}/template/spec/containers/0/env/1/value", "9")],
        {f"{POD}.containers[0].env[1].value": NEW},
    ),
    (
        "variable more",
        [(f"{GROUP}/template/spec/containers/0/env/13", {"name": "A", "value": "1"})],
        {f"{POD}.containers[0].env": NEW},
    ),
    ("Ray", [(f"{CLUSTER}/rayVersion", "2.61.0")], {"rayClusterConfig.rayVersion": NEW}),
    (
        "idle time",
        [(f"{CLUSTER}/autoscalerOptions/idleTimeoutSeconds", 60)],
        {"rayClusterConfig.autoscalerOptions.idleTimeoutSeconds": NEW},
    ),
    (
        "head's annotation",
        [(f"{CLUSTER}/headGroupSpec/template/metadata/annotations", {"again": "1"})],
        {f"{HEAD_POD}.metadata.annotations": NEW},
    ),
    (
        "group's label",
        [(f"{GROUP}/labels/siglip-serve~1pods", "cpu")],
        {"worker group cpu.labels.siglip-serve~1pods": NEW},
    ),
    ("group gone", [(GROUP, ...)], {"worker group cpu is gone": NEW}),
    # not in it: the operator leaves the RayCluster as it is
    (
        "fewest pods",
        [(f"{GROUP}/minReplicas", 3)],
        {"worker group cpu: minReplicas 2 → 3": NOT_TAKEN},
    ),
    (
        "most pods",
        [(f"{GROUP}/maxReplicas", 9)],
        {"worker group cpu: maxReplicas 4 → 9": NOT_TAKEN},
    ),
    ("replicas", [(f"{GROUP}/replicas", 3)], {"worker group cpu: replicas None → 3": NOT_TAKEN}),
    (
        "tolerations",
        [(f"{GROUP}/template/spec/tolerations", TOLERATIONS)],
        {f"{POD}.tolerations": NOT_TAKEN},
    ),
    (
        "gates",
        [(f"{GROUP}/template/spec/schedulingGates", [{"name": "a"}])],
        {f"{POD}.schedulingGates": NOT_TAKEN},
    ),
    (
        "head's tolerations",
        [(f"{CLUSTER}/headGroupSpec/template/spec/tolerations", TOLERATIONS)],
        {f"{HEAD_POD}.spec.tolerations": NOT_TAKEN},
    ),
    # a group at the end: the RayCluster is written anew, bounds too, and the cluster stays
    (
        "group more",
        [(f"{CLUSTER}/workerGroupSpecs/1", MORE)],
        {"worker group more is added": IN_PLACE},
    ),
    (
        "group more and bounds",
        [(f"{CLUSTER}/workerGroupSpecs/1", MORE), (f"{GROUP}/minReplicas", 3)],
        {"worker group more is added": IN_PLACE, "worker group cpu: minReplicas 2 → 3": IN_PLACE},
    ),
    # with a new cluster all else comes too
    (
        "all at once",
        [
            (f"{CLUSTER}/rayVersion", "2.61.0"),
            (f"{GROUP}/minReplicas", 3),
            (f"{CLUSTER}/workerGroupSpecs/1", MORE),
            (f"{GROUP}/template/spec/tolerations", TOLERATIONS),
            ("spec/serveConfigV2", "http_options: {port: 9000}\n"),
            ("spec/serveService/spec/type", "LoadBalancer"),
        ],
        {
            "rayClusterConfig.rayVersion": NEW,
            "worker group cpu: minReplicas 2 → 3": NEW,
            "worker group more is added": NEW,
            f"{POD}.tolerations": NEW,
            "serveConfigV2": NEW,
            "serveService": IN_PLACE,
        },
    ),
    # the operator's own, and the object's
    ("upgrade", [("spec/upgradeStrategy/type", "None")], {"upgradeStrategy": IN_PLACE}),
    (
        "deletion",
        [("spec/rayClusterDeletionDelaySeconds", 60)],
        {"rayClusterDeletionDelaySeconds": IN_PLACE},
    ),
    ("service", [("spec/serveService/spec/type", "LoadBalancer")], {"serveService": NOT_TAKEN}),
    (
        "annotation",
        [("metadata/annotations/ray.io~1initializing-timeout", "5m")],
        {"metadata.annotations.ray.io~1initializing-timeout": IN_PLACE},
    ),
    ("label", [("metadata/labels/team", "photos")], {"metadata.labels.team": IN_PLACE}),
    # upgradeStrategy None: no new cluster, whatever changes, and Serve's part is given to the one
    # that runs
    (
        "image without upgrades",
        [
            ("spec/upgradeStrategy/type", "None"),
            (f"{GROUP}/template/spec/containers/0/image", "siglip-serve:9"),
            (f"{GROUP}/minReplicas", 3),
        ],
        {
            "upgradeStrategy": IN_PLACE,
            f"{POD}.containers[0].image": NOT_TAKEN,
            "worker group cpu: minReplicas 2 → 3": NOT_TAKEN,
        },
    ),
]


@pytest.mark.parametrize(
    ("edits", "expected"),
    [one[1:] for one in MANIFEST_EDITS],
    ids=[one[0] for one in MANIFEST_EDITS],
)
def test_edits_of_a_manifest(edits: list[tuple[str, Any]], expected: dict[str, Effect]) -> None:
    """Each part of a RayService: in the hash that decides on a new cluster, beside it, or the
    operator's own.
    """
    running = manifest_of(CONFIG)
    wanted = copy.deepcopy(running)
    for path, value in edits:
        change(path, value)(wanted)
    assert told(running, wanted) == expected


def test_places_count() -> None:
    """The hash is of the list: groups that change places, and one put in front of another, are a
    new cluster.
    """
    running = manifest_of(CONFIG)
    running["spec"]["rayClusterConfig"]["workerGroupSpecs"].append(MORE)
    swapped = copy.deepcopy(running)
    before = copy.deepcopy(running)
    swapped["spec"]["rayClusterConfig"]["workerGroupSpecs"].reverse()
    before["spec"]["rayClusterConfig"]["workerGroupSpecs"].insert(0, {"groupName": "first"})
    assert NEW in told(running, swapped).values()
    assert NEW in told(running, before).values()


@pytest.mark.parametrize(
    ("strategy", "why"),
    [
        (
            {"type": "NewCluster"},
            "a second cluster beside the first, with all its GPUs, until it serves",
        ),
        (None, "a second cluster beside the first, with all its GPUs, until it serves"),
        (
            {"type": "NewClusterWithIncrementalUpgrade"},
            "a second cluster that takes over step by step",
        ),
        (
            {"type": "None"},
            "upgradeStrategy.type is None: delete the RayService and apply it again",
        ),
    ],
)
def test_how_a_new_cluster_comes(strategy: dict[str, str] | None, why: str) -> None:
    """As `upgradeStrategy` of what is applied says; both clusters whole where it says nothing
    (KubeRay's default).
    """
    running = manifest_of(CONFIG)
    change("spec/upgradeStrategy", strategy)(running)
    wanted = copy.deepcopy(running)
    change(f"{CLUSTER}/rayVersion", "2.61.0")(wanted)
    (found,) = compare(running, wanted)
    assert found.why == why


def test_without_upgrades_serve_still_changes() -> None:
    """`shouldPrepareNewCluster` is false then, and the Serve config goes to the cluster that
    runs.
    """
    running = manifest_of(CONFIG)
    wanted = manifest_of(merged(CONFIG, {"labels": ["bird"]}))
    for manifest in (running, wanted):
        change("spec/upgradeStrategy/type", "None")(manifest)
    change(f"{CLUSTER}/rayVersion", "2.61.0")(wanted)
    assert told(running, wanted) == {
        "rayClusterConfig.rayVersion": NOT_TAKEN,
        "tags: Postprocessor.user_config": IN_PLACE,
    }


def live(manifest: dict[str, Any], with_annotation: bool) -> dict[str, Any]:
    """As `kubectl get -o yaml` shows what was applied: the definition's defaults, what the server
    and the operator note.
    """
    shown = defaulted(schema_of("ray.io_rayservices"), manifest)
    if with_annotation:
        shown["metadata"].setdefault("annotations", {})[LAST_APPLIED] = json.dumps(manifest) + "\n"
    shown["metadata"] |= {
        "uid": "1",
        "generation": 3,
        "resourceVersion": "7",
        "managedFields": [{"manager": "kubectl"}],
    }
    shown["status"] = {
        "conditions": [],
        "activeServiceStatus": {"rayClusterName": "siglip-serve-abcde"},
    }
    return shown


@pytest.mark.parametrize("with_annotation", [True, False], ids=["applied", "applied by the server"])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_the_server_fills_in_is_no_change(overlay: str, with_annotation: bool) -> None:
    """Every overlay, given defaults by the operator's own definition: nothing differs, and an edit
    is all that does.
    """
    (manifest,) = (
        one for one in kustomized(f"k8s/overlays/{overlay}") if one["kind"] == "RayService"
    )
    running = live(manifest, with_annotation)
    assert running["spec"] != manifest["spec"], "it fills something in"
    assert compare(running, manifest) == ()
    change(f"{CLUSTER}/rayVersion", "2.61.0")(manifest)
    assert told(running, manifest) == {"rayClusterConfig.rayVersion": NEW}


def test_what_is_left_out_and_filled_in_is_no_change() -> None:
    """Bounds of groups and of upgrades have defaults too, and what was read from the server may be
    what is applied.
    """
    manifest = manifest_of(CONFIG)
    change(
        "spec/upgradeStrategy/clusterUpgradeOptions",
        {"gatewayClassName": "istio", "stepSizePercent": 5, "intervalSeconds": 5},
    )(manifest)
    for key in ("minReplicas", "maxReplicas"):
        change(f"{GROUP}/{key}", ...)(manifest)
    running = live(manifest, with_annotation=False)
    assert compare(running, manifest) == ()
    assert compare(running, live(manifest, with_annotation=True)) == ()


def test_another_spelling_is_no_change() -> None:
    """The same Serve config in another order, with and without a new cluster."""
    running = manifest_of(CONFIG)
    wanted = copy.deepcopy(running)
    written = yaml.safe_load(str(running["spec"]["serveConfigV2"]))
    change("spec/serveConfigV2", json.dumps(dict(reversed(written.items()))))(wanted)
    assert compare(running, wanted) == ()
    change(f"{CLUSTER}/rayVersion", "2.61.0")(wanted)
    assert told(running, wanted) == {"rayClusterConfig.rayVersion": NEW}


def test_a_default_that_is_written_is_no_change() -> None:
    """And one that is taken out again, as the server fills it in; another value is a new
    cluster.
    """
    running = manifest_of(CONFIG)
    for value, expected in (("TCP", {}), ("UDP", {f"{POD}.containers[0].ports[0].protocol": NEW})):
        wanted = copy.deepcopy(running)
        change(f"{GROUP}/template/spec/containers/0/ports/0/protocol", value)(wanted)
        assert told(running, wanted) == told(wanted, running) == expected


def test_what_was_applied_counts() -> None:
    """The annotation is what the next `kubectl apply` compares with: other people's additions to
    the object are theirs.
    """
    manifest = manifest_of(CONFIG)
    running = live(manifest, with_annotation=True)
    change("metadata/labels/argocd", "tags")(running)
    change("spec/suspend", False)(running)
    assert compare(running, manifest) == ()
    assert as_applied(running) == manifest
    assert as_applied(manifest) is manifest


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ({"kind": "RayCluster"}, "a RayService is needed, and this is a RayCluster"),
        ({}, "a RayService is needed, and this is a file without a kind"),
        (
            {"kind": "RayService", "metadata": {"name": "other"}},
            "is other and the one to be applied is siglip-serve, which would run beside",
        ),
        (
            {"kind": "RayService", "metadata": {"annotations": {LAST_APPLIED: "{"}}},
            "is not JSON: it cannot be read as JSON: Expecting",
        ),
        (
            {"kind": "RayService", "spec": {"serveConfigV2": "a: [\n"}},
            "serveConfigV2:2: not YAML: did not find",
        ),
    ],
)
def test_what_cannot_be_compared(manifest: dict[str, Any], said: str) -> None:
    """One sentence in one line."""
    wanted = manifest_of(CONFIG)
    with pytest.raises(ConfigError, match=said) as refused:
        compare(manifest, wanted)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "manifest", [{"kind": "RayService"}, {"kind": "RayService", "metadata": None, "spec": None}]
)
def test_an_empty_ray_service_has_everything_before_it(manifest: dict[str, Any]) -> None:
    """As one that was made by hand and has nothing yet."""
    assert NEW in told(manifest, manifest_of(CONFIG)).values()


def test_another_entrance_is_told() -> None:
    """With incremental upgrades the operator neither makes nor keeps the Service (kuberay#5148), so
    clients must ask elsewhere.
    """
    running = manifest_of(CONFIG)
    wanted = copy.deepcopy(running)
    wanted["spec"]["upgradeStrategy"] = {"type": "NewClusterWithIncrementalUpgrade"}
    for before, after in ((running, wanted), (wanted, running)):
        (change,) = compare(before, after)
        assert (change.where, change.effect) == ("upgradeStrategy", IN_PLACE)
        assert "Gateway" in change.why
