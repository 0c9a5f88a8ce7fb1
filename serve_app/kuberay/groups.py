"""From plans to worker groups: which pods there are, what each takes, and between how many of them
the cluster grows.

Arithmetic only. A pod with a GPU has the CPUs that the towers on it need and no more; everything
that only needs CPUs stands in pods of their own, so that the two scale apart and no GPU waits
behind a decoder.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.config.service import ServiceConfig
from serve_app.errors import ConfigError
from serve_app.hardware.detection import parse_hardware
from serve_app.hardware.plan import DeploymentPlan, Plan
from serve_app.hardware.planning import plan_service

CPU = "cpu"
GPU = "gpu"
"""Names of the groups, and values of the Ray node label `POD_LABEL`."""
POD_LABEL = "siglip-serve/pods"
"""A Ray node label. Deployments that shall stay out of GPU pods ask for it by `label_selector`."""
LEAST_SERVING_PODS = 2
"""Pods that requests may come in by: with one, its death is an outage of about 25 s (measured,
2026-11)."""
RAY_GIB = 2.0
"""Of a pod, for what is not ours: raylet, agents, HAProxy, and the object store of half a GiB.

Assumed.
"""
TOWER_GIB = 2.0
"""Of a tower's process beside its weights: torch, and where there is a GPU its context. Assumed."""

AMPLE_CPUS = 2048
"""For each GPU, to find out how many are wanted: more than keep the fastest card of the table busy
with the smallest checkpoint."""
MACHINE_DEPENDENT = ("auto", "cpu", "cpus")
"""What `hardware` may be and what is then asked of the machine that plans."""
SLACK = 1e-6
"""Parts of a GPU and CPUs are sums of hundredths."""


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """A worker group of a RayCluster.

    Attributes:
        name: `cpu` or `gpu`.
        cpus: Of a pod, requested and limit.
        memory_gib: The same.
        gpus: Of a pod; 0 or 1.
        accelerator: Ray's accelerator type; None without a GPU.
        least: Fewest pods.
        most: Most pods.
    """

    name: str
    cpus: int
    memory_gib: int
    gpus: int
    accelerator: str | None
    least: int
    most: int


def worker_groups(plans: Sequence[Plan]) -> tuple[WorkerGroup, ...]:
    """Return the worker groups that hold the plans of all applications of a cluster.

    Args:
        plans: One of each application, all for the same hardware.

    Raises:
        ConfigError: They are for different hardware, or together ask for more GPU than there is.
    """
    gpu_plans = [plan for plan in plans if plan.device == "cuda"]
    # one that takes no GPU is planned without those that its configuration names
    if (
        len({plan.hardware.cpus for plan in plans}) > 1
        or len({plan.hardware.written for plan in gpu_plans}) > 1
    ):
        raise ConfigError(
            "the configurations name different hardware; write the same in each, what the cluster may grow to."
        )
    cpu_group = _cpu_group(plans)
    return (cpu_group, _gpu_group(gpu_plans)) if gpu_plans else (cpu_group,)


def plan_for(config: ServiceConfig) -> Plan:
    """Return the plan of a configuration on the hardware that it names.

    Raises:
        ConfigError: It names none, or cannot work there.
    """
    if config.hardware.lower() in MACHINE_DEPENDENT:
        raise ConfigError(
            f"hardware is {config.hardware}, and a manifest is made before there are machines; name them, such as hardware: l4x4+24cpu."
        )
    return plan_service(config, lambda _: parse_hardware(config.hardware))


def with_gpus(config: ServiceConfig, gpu: str, most: int) -> ServiceConfig:
    """Return a configuration for a cluster that may grow to so many GPUs, with the CPUs that keep
    them busy.

    Args:
        config: The service's.
        gpu: Their kind, as `hardware` spells it, such as `l4`.
        most: Of them.

    Raises:
        ConfigError: The kind is not known, or the checkpoint does not fit.
    """
    plan_for(
        config.model_copy(update={"hardware": f"{gpu}x{most}"})
    )  # refuses in the words that were given
    ample = config.model_copy(update={"hardware": f"{gpu}x{most}+{AMPLE_CPUS * most}cpu"})
    cpus = all_cpus(worker_groups([plan_for(ample)]))
    return config.model_copy(update={"hardware": f"{gpu}x{most}+{cpus}cpu"})


def all_cpus(groups: Sequence[WorkerGroup]) -> int:
    """Return the CPUs of all pods that there may be."""
    return sum(group.cpus * group.most for group in groups)


def _gpu_group(plans: Sequence[Plan]) -> WorkerGroup:
    hardware = plans[0].hardware
    pods = hardware.gpus
    assert hardware.accelerator is not None, "a plan for cuda has one"
    towers = [
        (plan, name)
        for plan in plans
        for name in ("image_encoder", "text_encoder")
        if plan.deployments[name].num_gpus
    ]
    planned = [plan.deployments[name] for plan, name in towers]
    most = sum(one.max_replicas * one.num_gpus for one in planned)
    if most > pods + SLACK:
        raise ConfigError(
            f"all applications together ask for {most:g} GPUs, and {hardware.written} has {pods}; lower num_gpus or max_replicas of some."
        )
    placed = _placed([one for one in planned for _ in range(one.max_replicas)], pods)
    if placed is None:
        raise ConfigError(
            f"all applications together ask for {most:g} of the {pods} GPUs of {hardware.written}, in parts that cannot stand side by side "
            "on whole ones; lower num_gpus of some."
        )
    cpus = math.ceil(
        max(sum(_per_pod(one, pods) * one.num_cpus for one in planned), *map(_cpus, placed)) - SLACK
    )
    memory = RAY_GIB + sum(
        _per_pod(one, pods) * _tower_gib(plan, name)
        for one, (plan, name) in zip(planned, towers, strict=True)
    )
    spread = max(plan.deployments["image_encoder"].min_replicas for plan in plans)
    fewest = _fewest_gpu_pods(planned, cpus, min(spread, LEAST_SERVING_PODS), pods)
    return WorkerGroup(GPU, cpus, math.ceil(memory), 1, hardware.accelerator.name, fewest, pods)


def _placed(replicas: Sequence[DeploymentPlan], pods: int) -> list[list[DeploymentPlan]] | None:
    """Return replicas on pods with one GPU each, the largest part first and each on the emptiest,
    as Serve spreads them; or None.
    """
    held: list[list[DeploymentPlan]] = [[] for _ in range(pods)]
    for replica in sorted(replicas, key=lambda one: -one.num_gpus):
        emptiest = min(held, key=lambda pod: sum(one.num_gpus for one in pod))
        emptiest.append(replica)
        if sum(one.num_gpus for one in emptiest) > 1 + SLACK:
            return None
    return held


def _fewest_gpu_pods(planned: Sequence[DeploymentPlan], cpus: int, least: int, most: int) -> int:
    """Return the fewest pods of so many CPUs on which the fewest replicas stand, from `least` to
    `most`.
    """
    replicas = [one for one in planned for _ in range(one.min_replicas)]
    for pods in range(max(1, least), most):
        placed = _placed(replicas, pods)
        if placed is not None and max(map(_cpus, placed)) <= cpus + SLACK:
            return pods
    return most


def _cpus(replicas: Sequence[DeploymentPlan]) -> float:
    return sum(one.num_cpus for one in replicas)


def _cpu_group(plans: Sequence[Plan]) -> WorkerGroup:
    held = [
        (plan, name, planned)
        for plan in plans
        for name, planned in plan.deployments.items()
        if not planned.num_gpus
    ]
    # as many pods as the most numerous of those that work on every picture: the others stand beside
    # them
    spread = [planned for _, name, planned in held if name in ("preprocessor", "image_encoder")]
    pods = max(LEAST_SERVING_PODS, *(planned.max_replicas for planned in spread))
    cpus = math.ceil(
        sum(_per_pod(planned, pods) * planned.num_cpus for _, _, planned in held) - SLACK
    )
    memory = RAY_GIB + sum(
        _per_pod(planned, pods) * _replica_gib(plan, name) for plan, name, planned in held
    )
    least = max(LEAST_SERVING_PODS, *(planned.min_replicas for planned in spread))
    fewest = _fewest_cpu_pods([planned for _, _, planned in held], cpus, least, pods)
    return WorkerGroup(CPU, cpus, math.ceil(memory), 0, None, fewest, pods)


def _fewest_cpu_pods(planned: Sequence[DeploymentPlan], cpus: int, least: int, most: int) -> int:
    """Return the fewest pods of so many CPUs on which the fewest replicas stand, spread evenly;
    from `least` to `most`.
    """

    def needed(pods: int) -> float:
        return sum(math.ceil(one.min_replicas / pods) * one.num_cpus for one in planned)

    return next((pods for pods in range(least, most) if needed(pods) <= cpus + SLACK), most)


def _per_pod(planned: DeploymentPlan, pods: int) -> int:
    """Return how many replicas of a deployment one pod has to hold when all run."""
    return math.ceil(planned.max_replicas / pods)


def _tower_gib(plan: Plan, name: str) -> float:
    footprint = plan.image if name == "image_encoder" else plan.text
    weights = footprint.weights if plan.device == "cuda" else footprint.needed
    return TOWER_GIB + weights / 2**30


def _replica_gib(plan: Plan, name: str) -> float:
    return plan.host_bytes[name] / 2**30 if name in plan.host_bytes else _tower_gib(plan, name)
