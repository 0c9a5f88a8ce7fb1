"""From plans to worker groups: the kinds of pods, their sizes, and how many there may be.

Arithmetic only. A pod with a GPU has the CPUs that its towers need and no more. Everything that
only needs CPUs runs in pods of its own, so that the two kinds scale separately and no GPU waits for
a decoder.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from serve_app.config.service import ServiceConfig
from serve_app.config.serving import DEPLOYMENTS
from serve_app.errors import ConfigError
from serve_app.hardware.detection import Hardware, parse_hardware
from serve_app.hardware.plan import DeploymentPlan, Plan
from serve_app.hardware.planning import plan_service

CPU = "cpu"
GPU = "gpu"
"""Names of the groups, and values of the Ray node label `POD_LABEL`."""
POD_LABEL = "siglip-serve/pods"
"""A Ray node label. Deployments that must stay out of GPU pods select it by `label_selector`."""
MIN_SERVING_PODS = 2
"""Minimum number of pods that receive requests.

With one, its death is an outage of about 25 s (measured 2026-11).
"""
RAY_GIB = 2.0
"""Memory of a pod for Ray: raylet, agents, HAProxy, and an object store of half a GiB. Assumed."""
TOWER_GIB = 2.0
"""Memory of a tower's process besides its weights: torch, and the context of a GPU. Assumed."""
AMPLE_CPUS = 2048
"""CPUs for each GPU of the plan that finds out how many are useful: more than keep the fastest card
of the table busy with the smallest checkpoint."""
MACHINE_DEPENDENT = ("auto", "cpu", "cpus")
"""Values of `hardware` that depend on the machine that plans."""
SLACK = 1e-6
"""Tolerance for sums of hundredths of GPUs and CPUs."""
TOWERS = ("image_encoder", "text_encoder")


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """A worker group of a RayCluster.

    Attributes:
        name: `cpu` or `gpu`.
        cpus: CPUs of a pod, as request and limit.
        memory_gib: Memory of a pod in GiB, as request and limit.
        gpus: GPUs of a pod; 0 or 1.
        accelerator: Ray's accelerator type; None without a GPU.
        min_pods: Minimum number of pods.
        max_pods: Maximum number of pods.
    """

    name: str
    cpus: int
    memory_gib: int
    gpus: int
    accelerator: str | None
    min_pods: int
    max_pods: int


class Sized(NamedTuple):
    """A deployment of a plan, and the memory of one of its replicas in GiB."""

    planned: DeploymentPlan
    replica_gib: float


def worker_groups(plans: Sequence[Plan]) -> tuple[WorkerGroup, ...]:
    """Return the worker groups that hold the plans of all applications of a cluster.

    Args:
        plans: One plan for each application, all for the same hardware.

    Raises:
        ConfigError: The plans are for different hardware, or together take more GPUs than it has.
    """
    gpu_plans = [plan for plan in plans if plan.precision.device == "cuda"]
    # a plan that takes no GPU leaves out the GPUs that its configuration names
    all_sizes = {plan.hardware.cpus for plan in plans}
    gpu_hardware = {plan.hardware.written for plan in gpu_plans}
    if len(all_sizes) > 1 or len(gpu_hardware) > 1:
        raise ConfigError(
            "the configurations name different hardware; "
            "write the same in each, what the cluster may grow to."
        )
    cpu_group = _cpu_group(plans)
    return (cpu_group, _gpu_group(gpu_plans)) if gpu_plans else (cpu_group,)


def plan_for(config: ServiceConfig) -> Plan:
    """Return the plan of a configuration on the hardware that it names.

    Raises:
        ConfigError: It names no hardware, or cannot work on it.
    """
    if config.hardware.lower() in MACHINE_DEPENDENT:
        raise ConfigError(
            f"hardware is {config.hardware}, and a manifest is made before there are machines; "
            "name them, such as hardware: l4x4+24cpu."
        )
    return plan_service(config, parse_hardware(config.hardware))


def with_gpus(config: ServiceConfig, gpu: str, max_gpus: int) -> ServiceConfig:
    """Return a configuration for a cluster that may grow to some GPUs and the CPUs to feed them.

    Args:
        config: The configuration.
        gpu: Kind of the GPUs, as `hardware` spells it, such as `l4`.
        max_gpus: Maximum number of GPUs.

    Raises:
        ConfigError: The kind is not known, or the checkpoint does not fit.
    """
    gpus = f"{gpu}x{max_gpus}"
    # an error message quotes the hardware, so this plan uses the name as it was written
    plan_for(config.model_copy(update={"hardware": gpus}))
    ample = config.model_copy(update={"hardware": f"{gpus}+{AMPLE_CPUS * max_gpus}cpu"})
    cpus = all_cpus(worker_groups([plan_for(ample)]))
    return config.model_copy(update={"hardware": f"{gpus}+{cpus}cpu"})


def all_cpus(groups: Sequence[WorkerGroup]) -> int:
    """Return the CPUs of the maximum number of pods."""
    return sum(group.cpus * group.max_pods for group in groups)


def _gpu_group(plans: Sequence[Plan]) -> WorkerGroup:
    hardware = plans[0].hardware
    accelerator = hardware.accelerator
    assert accelerator is not None, "a plan for cuda has one"
    pods = hardware.gpus
    towers = [
        Sized(plan.deployments[name], _replica_gib(plan, name))
        for plan in plans
        for name in TOWERS
        if plan.deployments[name].num_gpus
    ]
    planned = [tower.planned for tower in towers]
    placed = _all_placed(planned, hardware)

    evenly_spread = sum(_per_pod(one, pods) * one.num_cpus for one in planned)
    cpus = math.ceil(max(evenly_spread, *map(_cpus, placed)) - SLACK)
    min_replicas = max(plan.deployments["image_encoder"].min_replicas for plan in plans)
    min_pods = _min_gpu_pods(planned, cpus, min(min_replicas, MIN_SERVING_PODS), pods)
    return WorkerGroup(GPU, cpus, _pod_gib(towers, pods), 1, accelerator.name, min_pods, pods)


def _all_placed(
    planned: Sequence[DeploymentPlan], hardware: Hardware
) -> list[list[DeploymentPlan]]:
    """Return the maximum of replicas on pods with one GPU each.

    Raises:
        ConfigError: They take more GPUs than there are, or cannot be placed side by side.
    """
    pods = hardware.gpus
    needed = sum(one.max_replicas * one.num_gpus for one in planned)
    if needed > pods + SLACK:
        raise ConfigError(
            f"all applications together ask for {needed:g} GPUs, "
            f"and {hardware.written} has {pods}; lower num_gpus or max_replicas of some."
        )
    placed = _placed([one for one in planned for _ in range(one.max_replicas)], pods)
    if placed is None:
        raise ConfigError(
            f"all applications together ask for {needed:g} of the {pods} GPUs of "
            f"{hardware.written}, in parts that cannot stand side by side on whole ones; "
            "lower num_gpus of some."
        )
    return placed


def _placed(replicas: Sequence[DeploymentPlan], pods: int) -> list[list[DeploymentPlan]] | None:
    """Return replicas on pods with one GPU each, as Serve spreads them; None if they do not fit.

    The largest part comes first, and each goes to the emptiest pod.
    """
    held: list[list[DeploymentPlan]] = [[] for _ in range(pods)]
    for replica in sorted(replicas, key=lambda one: -one.num_gpus):
        emptiest = min(held, key=lambda pod: sum(one.num_gpus for one in pod))
        emptiest.append(replica)
        if sum(one.num_gpus for one in emptiest) > 1 + SLACK:
            return None
    return held


def _min_gpu_pods(
    planned: Sequence[DeploymentPlan], cpus: int, min_pods: int, max_pods: int
) -> int:
    """Return the smallest number of pods that hold the minimum of replicas, within bounds.

    Args:
        planned: The deployments.
        cpus: CPUs of a pod.
        min_pods: Lower bound.
        max_pods: Upper bound.
    """
    replicas = [one for one in planned for _ in range(one.min_replicas)]
    for pods in range(max(1, min_pods), max_pods):
        placed = _placed(replicas, pods)
        if placed is not None and max(map(_cpus, placed)) <= cpus + SLACK:
            return pods
    return max_pods


def _cpus(replicas: Sequence[DeploymentPlan]) -> float:
    return sum(one.num_cpus for one in replicas)


def _cpu_group(plans: Sequence[Plan]) -> WorkerGroup:
    held = {
        name: [
            Sized(plan.deployments[name], _replica_gib(plan, name))
            for plan in plans
            if not plan.deployments[name].num_gpus
        ]
        for name in DEPLOYMENTS
    }
    # as many pods as the largest deployment that works on every image: the others run beside it
    spread = [one.planned for name in ("preprocessor", "image_encoder") for one in held[name]]
    pods = max(MIN_SERVING_PODS, *(planned.max_replicas for planned in spread))
    min_pods = max(MIN_SERVING_PODS, *(planned.min_replicas for planned in spread))

    sized = [one for deployments in held.values() for one in deployments]
    planned = [one.planned for one in sized]
    cpus = math.ceil(sum(_per_pod(one, pods) * one.num_cpus for one in planned) - SLACK)
    min_pods = _min_cpu_pods(planned, cpus, min_pods, pods)
    return WorkerGroup(CPU, cpus, _pod_gib(sized, pods), 0, None, min_pods, pods)


def _min_cpu_pods(
    planned: Sequence[DeploymentPlan], cpus: int, min_pods: int, max_pods: int
) -> int:
    """Return the smallest number of pods that hold the minimum of replicas, evenly spread."""

    def needed(pods: int) -> float:
        return sum(math.ceil(one.min_replicas / pods) * one.num_cpus for one in planned)

    enough = (pods for pods in range(min_pods, max_pods) if needed(pods) <= cpus + SLACK)
    return next(enough, max_pods)


def _per_pod(planned: DeploymentPlan, pods: int) -> int:
    """Return how many replicas of a deployment one pod has to hold when all run."""
    return math.ceil(planned.max_replicas / pods)


def _pod_gib(deployments: Sequence[Sized], pods: int) -> int:
    """Return the memory of a pod in GiB when all replicas run, evenly spread."""
    replicas_gib = sum(_per_pod(one.planned, pods) * one.replica_gib for one in deployments)
    return math.ceil(RAY_GIB + replicas_gib)


def _replica_gib(plan: Plan, name: str) -> float:
    if name in plan.host_bytes:
        return plan.host_bytes[name] / 2**30
    footprint = plan.image if name == "image_encoder" else plan.text
    is_on_gpu = plan.precision.device == "cuda"
    return TOWER_GIB + (footprint.weights if is_on_gpu else footprint.needed) / 2**30
