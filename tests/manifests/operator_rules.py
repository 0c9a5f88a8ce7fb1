"""What the KubeRay operator refuses although its schema takes it: rules that live in its Go code
only, as far as they concern us.

Each function is one rule, or a few of one place, and yields a sentence for each refusal. `Source:`
names the function of KubeRay 1.7.0 that it is taken from; all of them are in
`ray-operator/controllers/ray/utils/validation.go` where no other file is named.

Not here: the schema and its rules in CEL (`custom_kinds`), and rules for what we never write:
history servers, embedded storage, the operator's own network policies and TLS. Those are refused as
a whole, since their gates are off by default.
"""

import re
import zoneinfo
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from tests.manifests.schedules import is_schedule

GATES = frozenset(
    {
        "RayClusterStatusConditions",
        "RayJobDeletionPolicy",
        "RayMultiHostIndexing",
        "RayServiceIncrementalUpgrade",
    }
)
"""Feature gates that are on by default. Source: pkg/features/features.go."""
GATED_FIELDS = {
    "networkPolicy": "RayClusterNetworkPolicy",
    "tlsOptions": "RayClusterMTLS",
    "historyServerOptions": "RayClusterHistoryServer",
}
NAME_LENGTHS = {"RayCluster": 53, "RayService": 47, "RayJob": 47, "RayCronJob": 36}
"""Longer names would be cut in the names of services and clusters.

Source: utils/constant.go, MaxRay...NameLength.
"""
UPGRADES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")

LABEL_VALUE = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]|")
LABEL_KEY = re.compile(
    r"([a-z0-9][-a-z0-9.]{0,251}[a-z0-9]/)?([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]"
)
GO_DURATION = re.compile(r"\+?(\d+(\.\d*)?(ns|us|µs|ms|s|m|h))+")


@dataclass(frozen=True, slots=True)
class Cluster:
    """A RayCluster inside of a RayService or a RayJob.

    Attributes:
        spec: Its own specification.
        annotations: Of the object around it.
        gates: That the operator has on.
    """

    spec: dict[str, Any]
    annotations: dict[str, str]
    gates: frozenset[str]

    @property
    def head(self) -> dict[str, Any]:
        """The head's group."""
        return self.spec["headGroupSpec"]

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The groups of workers."""
        return self.spec.get("workerGroupSpecs", [])

    @property
    def named_groups(self) -> list[tuple[str, dict[str, Any]]]:
        """Every group with its name, the head's first."""
        return [("Head", self.head), *((group["groupName"], group) for group in self.groups)]

    @property
    def head_environment(self) -> dict[str, str]:
        """What the head's first container has in its environment; empty for what comes from
        elsewhere.
        """
        return {
            one["name"]: one.get("value", "")
            for one in self.head["template"]["spec"]["containers"][0].get("env", ())
        }

    @property
    def scales(self) -> bool:
        """Whether Ray's autoscaler runs."""
        return self.spec.get("enableInTreeAutoscaling", False)

    @property
    def scales_v2(self) -> bool:
        """Whether it is asked for in its second version.

        Source: utils/util.go, IsAutoscalingV2Enabled.
        """
        return self.spec.get("autoscalerOptions", {}).get("version") == "v2"

    @property
    def version(self) -> tuple[int, ...]:
        """The version of Ray as numbers; empty if it says none that can be read."""
        found = re.match(r"v?(\d+(?:\.\d+)+)", self.spec.get("rayVersion", ""))
        return tuple(map(int, found[1].split("."))) if found else ()


def refusals(manifest: dict[str, Any], gates: frozenset[str] = GATES) -> list[str]:
    """Return what the operator has against an object of its kinds; nothing for others.

    Args:
        manifest: An object that its schema takes.
        gates: The feature gates that are on.
    """
    kind = manifest["kind"]
    spec = manifest.get("spec", {})
    if manifest["apiVersion"] != "ray.io/v1":
        return []
    found = [*name_is_short(kind, manifest["metadata"]["name"])]
    annotations = manifest["metadata"].get("annotations", {})
    if kind == "RayCronJob":
        found += cron_job_runs(spec, gates)
        kind = "RayJob"
        spec = spec["jobTemplate"]
        annotations = {}
    if kind == "RayService":
        clusters = [spec["rayClusterConfig"]]
        found += [sentence for rule in SERVICE_RULES for sentence in rule(spec, annotations)]
    else:
        clusters = [spec["rayClusterSpec"]] if "rayClusterSpec" in spec else []
        found += [sentence for rule in JOB_RULES for sentence in rule(spec)]
    return found + [
        sentence
        for cluster in clusters
        for sentence in cluster_refusals(Cluster(cluster, annotations, gates))
    ]


def cluster_refusals(cluster: Cluster) -> list[str]:
    """Return what the operator has against a cluster."""
    if any(not group["template"]["spec"].get("containers") for _, group in cluster.named_groups):
        return ["a group has no container"]  # the other rules look into it
    return [sentence for rule in CLUSTER_RULES for sentence in rule(cluster)]


def name_is_short(kind: str, name: str) -> Iterator[str]:
    """The name leaves room for what is put after it, and is a label of the DNS.

    Source: ValidateRay...Metadata, ValidateRayCronJobSpec.
    """
    if len(name) > NAME_LENGTHS[kind]:
        yield f"{kind} name should be no more than {NAME_LENGTHS[kind]} characters"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"{kind} name should be a DNS-1035 label"


def groups_are_bounded(cluster: Cluster) -> Iterator[str]:
    """Replicas have bounds that are in order.

    Source: ValidateRayClusterSpec; that maxReplicas is wanted is ours: it is 2147483647 else.
    """
    for name, group in cluster.named_groups[1:]:
        least = group.get("minReplicas", 0)
        most = group.get("maxReplicas")
        if most is None or (least < 0 or most < 0):
            yield f"{name} needs minReplicas and maxReplicas that are not negative"
        elif least > most:
            yield f"{name} has minReplicas {least} greater than maxReplicas {most}"


def resources_are_said_once(cluster: Cluster) -> Iterator[str]:
    """In `resources` of the group or for `ray start`, not in both.

    Source: validateRayGroupResources.
    """
    for name, group in cluster.named_groups:
        if (
            group.get("resources")
            and {"num-cpus", "num-gpus", "memory", "resources"}
            & group.get("rayStartParams", {}).keys()
        ):
            yield f"{name} has resources and rayStartParams that say the same"


def labels_are_labels(cluster: Cluster) -> Iterator[str]:
    """Labels of Ray nodes have the form of Kubernetes' and stand in `labels`.

    Source: validateRayGroupLabels.
    """
    for name, group in cluster.named_groups:
        if "labels" in group.get("rayStartParams", {}):
            yield f"{name} has labels in rayStartParams; use the field labels"
        for key, value in group.get("labels", {}).items():
            if not LABEL_KEY.fullmatch(key) or not LABEL_VALUE.fullmatch(value):
                yield f"{name} has the label {key}: {value}, which is none"


def fault_tolerance_is_the_operators(cluster: Cluster) -> Iterator[str]:
    """Redis is named in gcsFaultToleranceOptions and nowhere else.

    Source: ValidateRayClusterSpec, validateGcsFaultToleranceBackend.
    """
    options = cluster.spec.get("gcsFaultToleranceOptions")
    start = cluster.head.get("rayStartParams", {})
    if "redis-username" in start or "REDIS_USERNAME" in cluster.head_environment:
        yield "the Redis username belongs into gcsFaultToleranceOptions"
    if options is None:
        if (
            "RAY_REDIS_ADDRESS" in cluster.head_environment
            and cluster.annotations.get("ray.io/ft-enabled", "").lower() != "true"
        ):
            yield "RAY_REDIS_ADDRESS is set, but gcsFaultToleranceOptions is not"
        return
    by_hand = [
        key for key in ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS") if key in cluster.head_environment
    ]
    by_hand += [
        key
        for key in ("ray.io/ft-enabled", "ray.io/external-storage-namespace")
        if cluster.annotations.get(key)
    ]
    by_hand += ["redis-password"] if start.get("redis-password") else []
    yield from (f"{key} and gcsFaultToleranceOptions are both set" for key in by_hand)
    if (
        options.get("backend", "redis") == "rocksdb"
        and "GCSFaultToleranceEmbeddedStorage" not in cluster.gates
    ):
        yield "the backend rocksdb needs the gate GCSFaultToleranceEmbeddedStorage"
    if options.get("backend", "redis") == "redis" and "storage" in options:
        yield "storage is for the backend rocksdb"


def scaling_fits(cluster: Cluster) -> Iterator[str]:
    """The autoscaler's version is said once, and the second one restarts no pods.

    Source: ValidateRayClusterSpec.
    """
    by_hand = cluster.head_environment.get("RAY_enable_autoscaler_v2")
    if not cluster.scales and by_hand in ("1", "true"):
        yield "RAY_enable_autoscaler_v2 needs enableInTreeAutoscaling"
    if (
        cluster.scales
        and by_hand is not None
        and "version" in cluster.spec.get("autoscalerOptions", {})
    ):
        yield "RAY_enable_autoscaler_v2 and autoscalerOptions.version are both set"
    if cluster.scales and any(group.get("suspend") for group in cluster.groups):
        yield "a group cannot be suspended with the autoscaler on"
    for name, group in cluster.named_groups:
        if (
            cluster.scales
            and cluster.scales_v2
            and group["template"]["spec"].get("restartPolicy", "Never") != "Never"
        ):
            yield f"restartPolicy of {name} should be Never or unset with autoscaler v2"
    if cluster.spec.get("autoscalerOptions", {}).get("idleTimeoutSeconds", 0) < 0:
        yield "idleTimeoutSeconds must not be negative"
    if any(
        one["name"] == "KUBERAY_GEN_AUTOSCALER_START_CMD"
        for one in cluster.spec.get("autoscalerOptions", {}).get("env", ())
    ):
        yield "KUBERAY_GEN_AUTOSCALER_START_CMD is the operator's own"


def groups_ask_for_what_v2_can(cluster: Cluster) -> Iterator[str]:
    """Idle time-outs and priorities of groups need autoscaler v2.

    Source: validateWorkerGroupIdleTimeout, validateWorkerGroupPriority.
    """
    is_v2 = cluster.scales_v2 or cluster.head_environment.get("RAY_enable_autoscaler_v2") in (
        "1",
        "true",
    )
    for name, group in cluster.named_groups[1:]:
        if group.get("idleTimeoutSeconds", 0) < 0:
            yield f"idleTimeoutSeconds of {name} must not be negative"
        if "idleTimeoutSeconds" in group and not is_v2:
            yield f"idleTimeoutSeconds of {name} needs autoscaler v2"
        if group.get("priority", 0) and not (is_v2 and cluster.version >= (2, 56)):
            yield f"priority of {name} needs autoscaler v2 and Ray 2.56"


def tokens_are_known(cluster: Cluster) -> Iterator[str]:
    """Token authentication needs a Ray that has it, and nothing more.

    Source: ValidateRayClusterSpec, ValidateRay{Service,Job}Spec.
    """
    options = cluster.spec.get("authOptions", {})
    if options.get("mode") == "token" and cluster.version < (2, 52):
        yield "authOptions.mode token needs a rayVersion of 2.52 or later"
    if options.get("enableK8sTokenAuth"):
        yield "enableK8sTokenAuth is not supported for RayService and RayJob"


def gates_are_on(cluster: Cluster) -> Iterator[str]:
    """Fields of features that are off. Source: ValidateRayClusterSpec."""
    yield from (
        f"{field} needs the gate {gate}"
        for field, gate in GATED_FIELDS.items()
        if field in cluster.spec and gate not in cluster.gates
    )


def cluster_is_not_upgraded_by_itself(cluster: Cluster) -> Iterator[str]:
    """The strategy is that of the object around it. Source: ValidateRayClusterUpgradeOptions."""
    if cluster.spec.get("upgradeStrategy", {}).get("type"):
        yield "upgradeStrategy cannot be set in a cluster that a RayService or RayJob makes"


def upgrade_is_possible(spec: dict[str, Any], _: dict[str, str]) -> Iterator[str]:
    """A type that is known, with the options it needs.

    Source: ValidateRayServiceSpec, ValidateClusterUpgradeOptions.
    """
    strategy = spec.get("upgradeStrategy", {})
    if strategy.get("type", "None") not in UPGRADES:
        yield f"upgradeStrategy.type must be one of {', '.join(UPGRADES)}"
    if strategy.get("type") != "NewClusterWithIncrementalUpgrade":
        return
    if not spec["rayClusterConfig"].get("enableInTreeAutoscaling"):
        yield "an incremental upgrade needs enableInTreeAutoscaling"
    options = strategy.get("clusterUpgradeOptions", {})
    surge = options.get("maxSurgePercent", 100)
    step = options.get("stepSizePercent", -1)
    if not (0 <= surge <= 100 and 0 <= step <= surge):
        yield (
            "stepSizePercent and maxSurgePercent must be from 0 to 100, "
            "and the first no more than the second"
        )
    if options.get("intervalSeconds", 0) <= 0:
        yield "intervalSeconds must be greater than 0"
    if not options.get("gatewayClassName"):
        yield "an incremental upgrade needs gatewayClassName"


def service_is_plain(spec: dict[str, Any], annotations: dict[str, str]) -> Iterator[str]:
    """Names, delays and time-outs. Source: ValidateRayServiceSpec, validateInitializingTimeout."""
    if (
        spec["rayClusterConfig"]["headGroupSpec"]
        .get("headService", {})
        .get("metadata", {})
        .get("name")
    ):
        yield "headService.metadata.name should not be set"
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "rayClusterDeletionDelaySeconds must not be negative"
    timeout = annotations.get("ray.io/initializing-timeout")
    if timeout and not (re.fullmatch(r"\+?\d+", timeout) or GO_DURATION.fullmatch(timeout)):
        yield (
            f"ray.io/initializing-timeout {timeout} is no duration of Go's and no number of seconds"
        )
    elif timeout and not re.search(r"[1-9]", timeout):
        yield "ray.io/initializing-timeout must be positive"


def job_ends(spec: dict[str, Any]) -> Iterator[str]:
    """Time-outs, tries and how it is submitted. Source: ValidateRayJobSpec."""
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(key, 1) <= 0:
            yield f"{key} must be positive"
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit must not be negative"
    if spec.get("backoffLimit", 0) > 0 and (
        spec.get("submissionMode") == "InteractiveMode" or spec.get("clusterSelector")
    ):
        yield "backoffLimit does not go with InteractiveMode and clusterSelector"
    if not spec.get("clusterSelector") and "rayClusterSpec" not in spec:
        yield "one of rayClusterSpec and clusterSelector must be set"
    if (
        spec.get("submissionMode") == "SidecarMode"
        and {"submitterPodTemplate", "submitterConfig", "clusterSelector"} & spec.keys()
    ):
        yield "SidecarMode has no submitter and no clusterSelector"
    if spec.get("suspend") and (
        spec.get("clusterSelector") or not spec.get("shutdownAfterJobFinishes")
    ):
        yield "a suspended job must have a cluster of its own and shutdownAfterJobFinishes"
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML must be a mapping"


def job_is_deleted_in_one_way(spec: dict[str, Any]) -> Iterator[str]:
    """By its time to live or by rules, and by rules that are in order.

    Source: validateDeletionConfiguration, validateDeletionRules.
    """
    shuts_down = spec.get("shutdownAfterJobFinishes", False)
    rules = spec.get("deletionStrategy", {}).get("deletionRules", [])
    if spec.get("ttlSecondsAfterFinished", 0) and not shuts_down:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if rules and shuts_down:
        yield "shutdownAfterJobFinishes and deletionRules are mutually exclusive"
    times: dict[tuple[str, str], int] = {}
    for rule in rules:
        condition = rule["condition"]
        when = str(condition.get("jobStatus") or condition.get("jobDeploymentStatus"))
        if ("jobStatus" in condition) == ("jobDeploymentStatus" in condition):
            yield "a condition needs one of jobStatus and jobDeploymentStatus"
        if (when, rule["policy"]) in times:
            yield f"there are two rules for {rule['policy']} when {when}"
        if rule["policy"] == "DeleteWorkers" and spec.get("rayClusterSpec", {}).get(
            "enableInTreeAutoscaling"
        ):
            yield "DeleteWorkers is not supported with the autoscaler on"
        times[when, rule["policy"]] = condition.get("ttlSeconds", 0)
    for when in {when for when, _ in times}:
        in_order = [times[when, policy] for policy in DELETION_ORDER if (when, policy) in times]
        if in_order != sorted(in_order):
            yield f"when {when}, workers go first, then the cluster, then the job"


def cron_job_runs(spec: dict[str, Any], gates: frozenset[str]) -> Iterator[str]:
    """At times that can be read, and at all.

    Source: ValidateRayCronJobSpec; the gate: main.go, which starts no controller without it.
    """
    if "RayCronJob" not in gates:
        yield "RayCronJob needs the gate RayCronJob"
    if "TZ" in spec["schedule"] or not is_schedule(spec["schedule"]):
        yield f"{spec['schedule']} is no schedule"
    if spec.get("timeZone", "Etc/UTC") not in zoneinfo.available_timezones():
        yield f"{spec['timeZone']} is no time zone"


CLUSTER_RULES: tuple[Callable[[Cluster], Iterator[str]], ...] = (
    groups_are_bounded,
    resources_are_said_once,
    labels_are_labels,
    fault_tolerance_is_the_operators,
    scaling_fits,
    groups_ask_for_what_v2_can,
    tokens_are_known,
    gates_are_on,
    cluster_is_not_upgraded_by_itself,
)
SERVICE_RULES: tuple[Callable[[dict[str, Any], dict[str, str]], Iterator[str]], ...] = (
    upgrade_is_possible,
    service_is_plain,
)
JOB_RULES: tuple[Callable[[dict[str, Any]], Iterator[str]], ...] = (
    job_ends,
    job_is_deleted_in_one_way,
)
