"""What the operator would refuse of our objects, and what Ray's own autoscaler reads in them."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)

from tests.manifests import custom_kinds
from tests.manifests import operator_rules as rules
from tests.manifests.kube import ROOT, kustomizations, kustomized
from tests.manifests.schedules import is_schedule

NEEDED_GATES = {"k8s/jobs/scheduled-gpu": frozenset({"RayCronJob"})}
"""Gates that are off by default and that a kustomization asks the person to put on."""

SERVICE = "RayService"
JOB = "RayJob"
CRON_JOB = "RayCronJob"
GROUP = "workerGroupSpecs/0"
INCREMENTAL = {
    "stepSizePercent": 20,
    "maxSurgePercent": 100,
    "intervalSeconds": 10,
    "gatewayClassName": "istio",
}


def good(kind: str) -> dict[str, Any]:
    """An object of a kind that the operator takes."""

    def group(**more: Any) -> dict[str, Any]:
        return {
            "rayStartParams": {},
            "template": {"spec": {"containers": [{"name": "ray", "image": "ray", "env": []}]}},
        } | more

    cluster = {
        "rayVersion": "2.60.0",
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2"},
        "headGroupSpec": group(),
    }
    cluster["workerGroupSpecs"] = [group(groupName="gpu", minReplicas=0, maxReplicas=2)]
    job = {"rayClusterSpec": cluster, "shutdownAfterJobFinishes": True}
    spec = {
        SERVICE: {"rayClusterConfig": cluster},
        JOB: job,
        CRON_JOB: {"schedule": "0 2 * * *", "jobTemplate": job},
    }[kind]
    return {
        "apiVersion": "ray.io/v1",
        "kind": kind,
        "metadata": {"name": "one", "annotations": {}},
        "spec": spec,
    }


def refused(kind: str, changes: dict[str, Any]) -> list[str]:
    """What the operator has against a good object after changes at `a/b/0/c`; `cluster/...` is the
    cluster in it.
    """
    made = good(kind)
    for path, value in changes.items():
        place = (
            {SERVICE: "spec/rayClusterConfig", JOB: "spec/rayClusterSpec"}[kind]
            if path.startswith("cluster/")
            else ""
        )
        *way, last = (
            step.replace("~", "/") for step in path.replace("cluster/", f"{place}/", 1).split("/")
        )
        at: Any = made
        for step in way:
            at = at[int(step)] if isinstance(at, list) else at.setdefault(step, {})
        at[last] = value
    return rules.refusals(made, rules.GATES | {"RayCronJob"})


def environment(**more: str) -> dict[str, Any]:
    return {
        "cluster/headGroupSpec/template/spec/containers/0/env": [
            {"name": name, "value": value} for name, value in more.items()
        ]
    }


def deletion(*found: tuple[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    made = [{"policy": policy, "condition": condition} for policy, condition in found]
    return {
        "spec/deletionStrategy": {"deletionRules": made},
        "spec/shutdownAfterJobFinishes": False,
    } | more


REDIS = {"cluster/gcsFaultToleranceOptions": {"redisAddress": "redis:6379"}}
UPGRADE = {"spec/upgradeStrategy/type": "NewClusterWithIncrementalUpgrade"}
OPTIONS = "spec/upgradeStrategy/clusterUpgradeOptions"
SUCCEEDED = {"jobStatus": "SUCCEEDED", "ttlSeconds": 10}

Row = tuple[str, dict[str, Any], str]
BAD: dict[Callable[..., Any], list[Row]] = {
    rules.name_is_short: [
        (SERVICE, {"metadata/name": "s" * 48}, "no more than 47"),
        (JOB, {"metadata/name": "j" * 48}, "no more than 47"),
        (CRON_JOB, {"metadata/name": "c" * 37}, "no more than 36"),
        (SERVICE, {"metadata/name": "1st"}, "DNS-1035"),
        (SERVICE, {"metadata/name": "a.b"}, "DNS-1035"),
    ],
    rules.cluster_refusals: [
        (SERVICE, {f"cluster/{GROUP}/template/spec/containers": []}, "no container"),
        (JOB, {"cluster/headGroupSpec/template/spec/containers": []}, "no container"),
    ],
    rules.groups_are_bounded: [
        (SERVICE, {f"cluster/{GROUP}/minReplicas": 3}, "minReplicas 3 greater than maxReplicas 2"),
        (SERVICE, {f"cluster/{GROUP}/minReplicas": -1}, "not negative"),
        (SERVICE, {f"cluster/{GROUP}/maxReplicas": None}, "needs minReplicas and maxReplicas"),
    ],
    rules.resources_are_said_once: [
        (
            JOB,
            {
                "cluster/headGroupSpec/resources/CPU": "0",
                "cluster/headGroupSpec/rayStartParams/num-cpus": "0",
            },
            "Head has resources",
        ),
        (
            JOB,
            {
                f"cluster/{GROUP}/resources/GPU": "1",
                f"cluster/{GROUP}/rayStartParams/num-gpus": "1",
            },
            "gpu has resources",
        ),
    ],
    rules.labels_are_labels: [
        (SERVICE, {f"cluster/{GROUP}/rayStartParams/labels": "a=b"}, "use the field labels"),
        (SERVICE, {f"cluster/{GROUP}/labels": {"a": "no label"}}, "which is none"),
        (SERVICE, {f"cluster/{GROUP}/labels": {"a/b/c": "x"}}, "which is none"),
        (SERVICE, {f"cluster/{GROUP}/labels": {"a": "x" * 64}}, "which is none"),
    ],
    rules.fault_tolerance_is_the_operators: [
        (SERVICE, environment(RAY_REDIS_ADDRESS="redis:6379"), "gcsFaultToleranceOptions is not"),
        (SERVICE, REDIS | environment(RAY_REDIS_ADDRESS="redis:6379"), "RAY_REDIS_ADDRESS and"),
        (SERVICE, REDIS | environment(REDIS_PASSWORD="x"), "REDIS_PASSWORD and"),
        (
            SERVICE,
            REDIS | {"cluster/headGroupSpec/rayStartParams/redis-password": "x"},
            "redis-password and",
        ),
        (
            SERVICE,
            REDIS | {"metadata/annotations/ray.io~ft-enabled": "true"},
            "ray.io/ft-enabled and",
        ),
        (
            SERVICE,
            REDIS | {"metadata/annotations/ray.io~external-storage-namespace": "x"},
            "ray.io/external-storage-namespace and",
        ),
        (SERVICE, {"cluster/headGroupSpec/rayStartParams/redis-username": "x"}, "username"),
        (SERVICE, environment(REDIS_USERNAME="x"), "username"),
        (
            SERVICE,
            {"cluster/gcsFaultToleranceOptions": {"backend": "rocksdb"}},
            "GCSFaultToleranceEmbeddedStorage",
        ),
        (SERVICE, {"cluster/gcsFaultToleranceOptions": {"storage": {}}}, "storage is for"),
    ],
    rules.scaling_fits: [
        (
            SERVICE,
            {f"cluster/{GROUP}/template/spec/restartPolicy": "Always"},
            "restartPolicy of gpu",
        ),
        (
            JOB,
            {"cluster/headGroupSpec/template/spec/restartPolicy": "OnFailure"},
            "restartPolicy of Head",
        ),
        (SERVICE, environment(RAY_enable_autoscaler_v2="1"), "both set"),
        (
            SERVICE,
            environment(RAY_enable_autoscaler_v2="true")
            | {"cluster/enableInTreeAutoscaling": False},
            "needs enableInTree",
        ),
        (SERVICE, {f"cluster/{GROUP}/suspend": True}, "cannot be suspended"),
        (SERVICE, {"cluster/autoscalerOptions/idleTimeoutSeconds": -1}, "must not be negative"),
        (
            SERVICE,
            {"cluster/autoscalerOptions/env": [{"name": "KUBERAY_GEN_AUTOSCALER_START_CMD"}]},
            "the operator's own",
        ),
    ],
    rules.groups_ask_for_what_v2_can: [
        (
            SERVICE,
            {f"cluster/{GROUP}/idleTimeoutSeconds": 9, "cluster/autoscalerOptions": {}},
            "needs autoscaler v2",
        ),
        (SERVICE, {f"cluster/{GROUP}/idleTimeoutSeconds": -9}, "must not be negative"),
        (
            SERVICE,
            {f"cluster/{GROUP}/priority": 1, "cluster/autoscalerOptions": {}},
            "needs autoscaler v2 and Ray 2.56",
        ),
        (
            SERVICE,
            {f"cluster/{GROUP}/priority": 1, "cluster/rayVersion": "2.55.9"},
            "needs autoscaler v2 and Ray 2.56",
        ),
    ],
    rules.tokens_are_known: [
        (
            SERVICE,
            {"cluster/authOptions": {"mode": "token"}, "cluster/rayVersion": "2.51.2"},
            "2.52 or later",
        ),
        (
            JOB,
            {"cluster/authOptions": {"mode": "token"}, "cluster/rayVersion": ""},
            "2.52 or later",
        ),
        (
            SERVICE,
            {"cluster/authOptions": {"mode": "token", "enableK8sTokenAuth": True}},
            "enableK8sTokenAuth",
        ),
        (
            JOB,
            {"cluster/authOptions": {"mode": "token", "enableK8sTokenAuth": True}},
            "enableK8sTokenAuth",
        ),
    ],
    rules.gates_are_on: [
        (SERVICE, {"cluster/networkPolicy": {}}, "RayClusterNetworkPolicy"),
        (SERVICE, {"cluster/tlsOptions": {"enabled": True}}, "RayClusterMTLS"),
        (JOB, {"cluster/historyServerOptions": {}}, "RayClusterHistoryServer"),
    ],
    rules.cluster_is_not_upgraded_by_itself: [
        (
            SERVICE,
            {"cluster/upgradeStrategy": {"type": "Recreate"}},
            "upgradeStrategy cannot be set",
        )
    ],
    rules.upgrade_is_possible: [
        (SERVICE, {"spec/upgradeStrategy/type": "Rolling"}, "must be one of"),
        (
            SERVICE,
            UPGRADE | {OPTIONS: INCREMENTAL, "cluster/enableInTreeAutoscaling": False},
            "needs enableInTreeAutoscaling",
        ),
        (
            SERVICE,
            UPGRADE | {OPTIONS: INCREMENTAL | {"maxSurgePercent": 10}},
            "the first no more than the second",
        ),
        (SERVICE, UPGRADE | {OPTIONS: INCREMENTAL | {"maxSurgePercent": 101}}, "from 0 to 100"),
        (
            SERVICE,
            UPGRADE
            | {
                OPTIONS: {
                    key: value for key, value in INCREMENTAL.items() if key != "stepSizePercent"
                }
            },
            "from 0 to 100",
        ),
        (SERVICE, UPGRADE | {OPTIONS: INCREMENTAL | {"intervalSeconds": 0}}, "greater than 0"),
        (SERVICE, UPGRADE | {OPTIONS: INCREMENTAL | {"gatewayClassName": ""}}, "gatewayClassName"),
    ],
    rules.service_is_plain: [
        (
            SERVICE,
            {"cluster/headGroupSpec/headService": {"metadata": {"name": "mine"}}},
            "headService",
        ),
        (SERVICE, {"spec/rayClusterDeletionDelaySeconds": -1}, "must not be negative"),
        (
            SERVICE,
            {"metadata/annotations/ray.io~initializing-timeout": "half an hour"},
            "no duration",
        ),
        (SERVICE, {"metadata/annotations/ray.io~initializing-timeout": "30 m"}, "no duration"),
        (SERVICE, {"metadata/annotations/ray.io~initializing-timeout": "0m"}, "must be positive"),
    ],
    rules.job_ends: [
        (JOB, {"spec/activeDeadlineSeconds": 0}, "activeDeadlineSeconds must be positive"),
        (JOB, {"spec/preRunningDeadlineSeconds": -1}, "preRunningDeadlineSeconds must be positive"),
        (CRON_JOB, {"spec/jobTemplate/backoffLimit": -1}, "backoffLimit must not be negative"),
        (
            JOB,
            {"spec/backoffLimit": 1, "spec/submissionMode": "InteractiveMode"},
            "does not go with InteractiveMode",
        ),
        (JOB, {"spec": {}}, "one of rayClusterSpec and clusterSelector"),
        (
            JOB,
            {"spec/submissionMode": "SidecarMode", "spec/submitterPodTemplate": {}},
            "no submitter",
        ),
        (JOB, {"spec/suspend": True, "spec/shutdownAfterJobFinishes": False}, "suspended"),
        (JOB, {"spec/runtimeEnvYAML": "- pip"}, "must be a mapping"),
    ],
    rules.job_is_deleted_in_one_way: [
        (
            JOB,
            {"spec/ttlSecondsAfterFinished": 9, "spec/shutdownAfterJobFinishes": False},
            "needs shutdownAfterJobFinishes",
        ),
        (
            JOB,
            deletion(("DeleteSelf", SUCCEEDED)) | {"spec/shutdownAfterJobFinishes": True},
            "mutually exclusive",
        ),
        (
            JOB,
            deletion(("DeleteSelf", SUCCEEDED | {"jobDeploymentStatus": "Failed"})),
            "needs one of",
        ),
        (
            JOB,
            deletion(("DeleteSelf", SUCCEEDED), ("DeleteSelf", SUCCEEDED)),
            "two rules for DeleteSelf",
        ),
        (JOB, deletion(("DeleteWorkers", SUCCEEDED)), "not supported with the autoscaler"),
        (
            JOB,
            deletion(("DeleteSelf", SUCCEEDED), ("DeleteCluster", SUCCEEDED | {"ttlSeconds": 11})),
            "then the cluster, then the job",
        ),
    ],
    rules.cron_job_runs: [
        (CRON_JOB, {"spec/schedule": "every night"}, "is no schedule"),
        (CRON_JOB, {"spec/schedule": "CRON_TZ=Europe/Berlin 0 2 * * *"}, "is no schedule"),
        (CRON_JOB, {"spec/timeZone": "Mars/Olympus"}, "is no time zone"),
    ],
}


@pytest.mark.parametrize("kind", [SERVICE, JOB, CRON_JOB])
def test_a_good_object_passes(kind: str) -> None:
    """So what the others find is what they changed."""
    assert rules.refusals(good(kind), rules.GATES | {"RayCronJob"}) == []


@pytest.mark.parametrize(
    ("kind", "changes", "said"), [row for found in BAD.values() for row in found]
)
def test_a_bad_object_is_refused(kind: str, changes: dict[str, Any], said: str) -> None:
    """Once, and for what is wrong with it."""
    (found,) = refused(kind, changes)
    assert said in found


def test_a_gate_that_is_off_keeps_a_kind_off() -> None:
    """The operator starts no controller for it, so it would be taken and forgotten."""
    assert rules.refusals(good(CRON_JOB)) == ["RayCronJob needs the gate RayCronJob"]


def test_every_rule_has_something_that_it_refuses() -> None:
    """A rule that was never seen to refuse anything may be none."""
    assert {*rules.CLUSTER_RULES, *rules.SERVICE_RULES, *rules.JOB_RULES} <= BAD.keys()


@pytest.mark.parametrize("folder", kustomizations())
def test_the_operator_takes_every_object(folder: str) -> None:
    """With the gates that are on by default, and those that the kustomization asks for."""
    gates = rules.GATES | NEEDED_GATES.get(folder, frozenset())
    assert {
        one["metadata"]["name"]: found
        for one in kustomized(folder)
        if (found := rules.refusals(one, gates))
    } == {}


@pytest.mark.parametrize(("folder", "gates"), NEEDED_GATES.items())
def test_a_gate_that_is_needed_is_told(folder: str, gates: frozenset[str]) -> None:
    """In the head of the kustomization, which would be refused without it."""
    head = (
        (ROOT / folder / "kustomization.yaml")
        .read_text(encoding="utf-8")
        .partition("apiVersion")[0]
    )
    assert all(f"gate {gate}" in head for gate in gates)
    assert any(rules.refusals(one) for one in kustomized(folder))


def clusters_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The cluster of an object as the operator makes it, with the defaults of its schema."""
    plural = f"ray.io_{manifest['kind'].lower()}s"
    if not custom_kinds.is_packed(plural):
        return []
    spec = custom_kinds.defaulted(custom_kinds.schema_of(plural), copy.deepcopy(manifest))["spec"]
    spec = spec.get("jobTemplate", spec)
    inner = spec.get("rayClusterConfig") or spec["rayClusterSpec"]
    inner["headGroupSpec"].setdefault("rayStartParams", {})
    metadata = {"name": manifest["metadata"]["name"], "namespace": "siglip"}
    return [{"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": inner}]


@pytest.mark.parametrize("folder", kustomizations())
def test_rays_autoscaler_reads_every_cluster(folder: str) -> None:
    """Its own parser sees a head that runs no tasks, and groups with the bounds, GPUs and whole
    CPUs that their pods ask for.
    """
    for cluster in (found for one in kustomized(folder) for found in clusters_of(one)):
        types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
        assert types["headgroup"]["resources"]["CPU"] == 0
        assert types.keys() == {
            "headgroup",
            *(group["groupName"] for group in cluster["spec"]["workerGroupSpecs"]),
        }
        for group in cluster["spec"]["workerGroupSpecs"]:
            read = types[group["groupName"]]
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            assert (read["min_workers"], read["max_workers"]) == (
                group["minReplicas"],
                group["maxReplicas"],
            )
            assert read["resources"].get("GPU", 0) == int(limits.get("nvidia.com/gpu", 0))
            assert read["resources"]["CPU"] == int(limits["cpu"])


@pytest.mark.parametrize(
    "text", ["0 2 * * *", "*/15 0-6 1,15 jan-mar MON", "@daily", "@every 1h30m", "0 0 ? * 6"]
)
def test_a_schedule_is_read(text: str) -> None:
    """Numbers, steps, ranges, lists, names and the words for some of them."""
    assert is_schedule(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0 2 * *",
        "0 2 * * * *",
        "60 2 * * *",
        "0 24 * * *",
        "0 0 0 * *",
        "0 0 * 13 *",
        "0 0 * * 7",
        "9-5 * * * *",
    ],
)
def test_what_is_no_schedule_is_not(text: str) -> None:
    """Fields that are missing, too many, out of their bounds or the wrong way round; robfig/cron
    knows no seventh day.
    """
    assert not is_schedule(text)
