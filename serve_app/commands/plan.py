"""`siglip-serve plan`: prints the plan of a configuration, with the reason for each value."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from serve_app.commands.arguments import add_flag
from serve_app.config.service import ServiceConfig, load_config
from serve_app.graph.deploy import Cluster
from serve_app.hardware.detection import Hardware, hardware_of_nodes, parse_hardware
from serve_app.hardware.plan import Plan, gib
from serve_app.hardware.planning import hardware_here, plan_service
from serve_app.terminal.console import SafeConsole, SafeTable, output_console, styled
from serve_app.terminal.printable import json_text, print_block

PLAIN_WIDTH = 160
"""Width if standard output is not a terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `plan`."""
    parser.add_argument("config", type=Path)
    hardware = parser.add_mutually_exclusive_group()
    hardware.add_argument(
        "--hardware",
        help="such as l4, l4x2, a100-80gx8+96cpu, gpu24gb or cpu8; "
        "default: the configuration's hardware",
    )
    hardware.add_argument(
        "--cluster",
        nargs="?",
        const="http://127.0.0.1:8265",
        help="use the hardware of the cluster with this dashboard",
    )
    add_flag(parser, "--json", "print one JSON object, not tables")


def run(args: argparse.Namespace) -> int:
    """Plan a configuration; see `print_plan`."""
    return print_plan(load_config(args.config), args.hardware, args.cluster, as_json=args.json)


def print_plan(
    config: ServiceConfig, hardware: str | None, cluster: str | None, as_json: bool
) -> int:
    """Print the plan of a configuration.

    Args:
        config: The configuration.
        hardware: Name of the hardware to plan for, instead of the configuration's.
        cluster: Address of a dashboard; the plan is for the nodes of its cluster.
        as_json: Whether to print JSON.

    Raises:
        ConfigError: The configuration does not fit the hardware; the message says what would.
    """
    plan = plan_service(config, _hardware(config, hardware, cluster))
    if as_json:
        print_block(json_text(_as_json(plan), indent=2) + "\n")
    else:
        _print(plan, output_console(PLAIN_WIDTH))
    return 0


def hardware_of_cluster(config: ServiceConfig, cluster: Cluster) -> Hardware:
    """Return the configuration's hardware, or if it is `auto`, the hardware of a cluster.

    The dashboard describes the nodes, because this process cannot probe them.
    """
    if config.hardware != "auto":
        return parse_hardware(config.hardware)
    source = f"the cluster at {cluster.address}"
    return hardware_of_nodes(cluster.nodes(), source, config.siglip.device != "cpu")


def _hardware(config: ServiceConfig, named: str | None, cluster: str | None) -> Hardware:
    """Return the hardware to plan for.

    The first of these that is set: `named`, the cluster, the configuration, this machine.
    """
    if named is not None and named != "auto":
        return parse_hardware(named)
    if named is not None or cluster is not None:
        config = config.model_copy(update={"hardware": "auto"})
    if cluster is not None:
        return hardware_of_cluster(config, Cluster(cluster))
    return hardware_here(config.hardware, config.siglip)


def _as_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as one object, with the fields of `precision` at its top level."""
    fields: dict[str, Any] = {}
    for key, value in dataclasses.asdict(plan).items():
        fields |= value if key == "precision" else {key: value}
    return fields


def _print(plan: Plan, console: SafeConsole) -> None:
    title = styled(plan.checkpoint, "bold")
    console.print(title.append(styled(f" on {plan.hardware.described}", "not bold")))
    console.print()
    console.print(_deployments_table(plan))
    reasons = SafeTable("", "", "why")
    for reason in plan.reasons:
        reasons.add_row(reason.name, styled(str(reason.value), "bold"), reason.why)
    console.print(reasons)
    for line in plan.advice:
        console.print(f"advice: {line}")


def _deployments_table(plan: Plan) -> SafeTable:
    towers = {"image_encoder": plan.image.needed, "text_encoder": plan.text.needed}
    memory = {**plan.host_bytes, **towers}
    table = SafeTable("deployment", "CPUs", "GPU", "replicas", "memory each")
    for name, planned in plan.deployments.items():
        replicas = str(planned.max_replicas)
        if planned.min_replicas != planned.max_replicas:
            replicas = f"{planned.min_replicas} to {planned.max_replicas}"
        resources = (f"{planned.num_cpus:g}", f"{planned.num_gpus:g}")
        table.add_row(name, *resources, replicas, gib(memory[name]))
    return table
