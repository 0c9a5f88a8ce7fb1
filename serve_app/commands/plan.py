"""`siglip-serve plan`: what the planner makes of a configuration, with the reason for each
number.
"""

import dataclasses
import functools

from serve_app.config.service import ServiceConfig
from serve_app.graph.deploy import Cluster
from serve_app.hardware.detection import (
    Hardware,
    cpu_has_bfloat16,
    detect_machine,
    hardware_of_nodes,
)
from serve_app.hardware.plan import Plan, gib
from serve_app.hardware.planning import plan_service
from serve_app.terminal.console import SafeConsole, SafeTable, styled
from serve_app.terminal.printable import json_text, print_block

PLAIN_WIDTH = 160
"""Columns where standard output is no terminal."""


def print_plan(
    config: ServiceConfig, hardware: str | None, cluster: str | None, as_json: bool
) -> int:
    """Plan a configuration on the hardware that was named, on a cluster's, or on what the
    configuration or machine has.

    Raises:
        ConfigError: It cannot work; says what would.
    """
    if hardware is not None or cluster is not None:
        config = config.model_copy(update={"hardware": hardware or "auto"})
    plan = plan_service(
        config,
        detect_machine
        if cluster is None
        else functools.partial(hardware_of_cluster, Cluster(cluster)),
    )
    if as_json:
        print_block(json_text(dataclasses.asdict(plan), indent=2) + "\n")
        return 0
    _print(plan, SafeConsole(plain_width=PLAIN_WIDTH))
    return 0


def hardware_of_cluster(cluster: Cluster, with_gpus: bool) -> Hardware:
    """Return what the living nodes of a cluster have, as its dashboard says."""
    return hardware_of_nodes(
        cluster.nodes(), cpu_has_bfloat16(), f"the cluster at {cluster.address}", with_gpus
    )


def _print(plan: Plan, console: SafeConsole) -> None:
    console.print(
        styled(plan.checkpoint, "bold").append(styled(f" on {plan.hardware.described}", "not bold"))
    )
    console.print()
    deployments = SafeTable("deployment", "CPUs", "GPU", "replicas", "memory each")
    memory = {name: gib(nbytes) for name, nbytes in plan.host_bytes.items()}
    memory |= {"image_encoder": gib(plan.image.needed), "text_encoder": gib(plan.text.needed)}
    for name, planned in plan.deployments.items():
        least = planned.min_replicas
        most = planned.max_replicas
        replicas = str(most) if least == most else f"{least} to {most}"
        deployments.add_row(
            name, f"{planned.num_cpus:g}", f"{planned.num_gpus:g}", replicas, memory[name]
        )
    console.print(deployments)
    reasons = SafeTable("", "", "why")
    for reason in plan.reasons:
        reasons.add_row(reason.name, styled(str(reason.value), "bold"), reason.why)
    console.print(reasons)
    for line in plan.advice:
        console.print(f"advice: {line}")
