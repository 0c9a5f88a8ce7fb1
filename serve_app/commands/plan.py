"""`siglip-serve plan`: what the planner makes of a configuration, with the reason for each number."""

import dataclasses
import functools
import json

from rich.console import Console
from rich.table import Table

from serve_app.config import ServiceConfig
from serve_app.graph.deploy import Cluster
from serve_app.hardware.detection import Hardware, cpu_has_bfloat16, detect_machine, hardware_of_nodes
from serve_app.hardware.plan import Plan, gib
from serve_app.planning import plan_service

PLAIN_WIDTH = 160
"""Columns where standard output is no terminal."""


def print_plan(config: ServiceConfig, hardware: str | None, cluster: str | None, as_json: bool) -> int:
    """Plan a configuration on the hardware that was named, on a cluster's, or on what the configuration or machine has.

    Raises:
        ConfigError: It cannot work; says what would.
    """
    if hardware is not None or cluster is not None:
        config = config.model_copy(update={"hardware": hardware or "auto"})
    plan = plan_service(config, detect_machine if cluster is None else functools.partial(hardware_of_cluster, Cluster(cluster)))
    if as_json:
        print(json.dumps(dataclasses.asdict(plan), indent=2))
        return 0
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    _print(plan, console)
    return 0


def hardware_of_cluster(cluster: Cluster, with_gpus: bool) -> Hardware:
    """Return what the living nodes of a cluster have, as its dashboard says."""
    return hardware_of_nodes(cluster.nodes(), cpu_has_bfloat16(), f"the cluster at {cluster.address}", with_gpus)


def _print(plan: Plan, console: Console) -> None:
    console.print(f"[bold]{plan.checkpoint}[/bold] on {plan.hardware.described}\n")
    deployments = Table("deployment", "CPUs", "GPU", "replicas", "memory each", box=None, pad_edge=False)
    memory = {"image_encoder": gib(plan.image.needed), "text_encoder": gib(plan.text.needed)}
    for name, planned in plan.deployments.items():
        least, most = planned.min_replicas, planned.max_replicas
        replicas = str(most) if least == most else f"{least} to {most}"
        deployments.add_row(name, f"{planned.num_cpus:g}", f"{planned.num_gpus:g}", replicas, memory.get(name, ""))
    console.print(deployments)
    reasons = Table("", "", "why", box=None, pad_edge=False)
    for reason in plan.reasons:
        reasons.add_row(reason.name, f"[bold]{reason.value}[/bold]", reason.why)
    console.print(reasons)
    for line in plan.advice:
        console.print(f"advice: {line}")
