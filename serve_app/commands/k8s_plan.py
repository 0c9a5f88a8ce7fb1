"""Prints the plan of a RayService: worker groups, replicas, rate, cost and changes."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serve_app.commands.k8s_advice import base_advice, images_per_second, service_advice
from serve_app.config.service import ServiceConfig
from serve_app.hardware.plan import Plan
from serve_app.kuberay.effects import Change
from serve_app.kuberay.groups import WorkerGroup
from serve_app.terminal.console import SafeConsole, SafeTable, styled

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """The plan of all applications on one cluster.

    Attributes:
        configs: One configuration for each application.
        plans: The plan of each.
        groups: The worker groups for all applications.
        gpu_price: US dollars per hour of a GPU pod; None if unknown.
    """

    configs: tuple[ServiceConfig, ...]
    plans: tuple[Plan, ...]
    groups: tuple[WorkerGroup, ...]
    gpu_price: float | None

    @property
    def rate(self) -> float:
        """Images per second if all pods run."""
        return sum(images_per_second(plan) for plan in self.plans)

    @property
    def million_usd(self) -> float | None:
        """US dollars per million images; None without a price or a GPU."""
        gpus = sum(group.max_pods * group.gpus for group in self.groups)
        if self.gpu_price is None or not gpus:
            return None
        return self.gpu_price * gpus / HOUR_S / self.rate * 1e6

    @property
    def advice(self) -> list[str]:
        """Advice for the operator, one sentence each."""
        return [*service_advice(self.configs, self.plans), *base_advice(self.configs)]


def as_json(service: ServicePlan, changes: Sequence[Change] | None) -> dict[str, Any]:
    """Return a plan as a JSON object."""
    content: dict[str, Any] = {
        "hardware": service.configs[0].hardware,
        "groups": [_group_json(group) for group in service.groups],
        "images_per_second": service.rate,
        "advice": service.advice,
    }
    if service.million_usd is not None:
        content["usd_per_million_images"] = service.million_usd
    if changes is not None:
        content["changes"] = [dataclasses.asdict(change) for change in changes]
    return content


def _group_json(group: WorkerGroup) -> dict[str, Any]:
    """Return a worker group; `least` and `most` are the names that scripts read."""
    names = {"min_pods": "least", "max_pods": "most"}
    fields = dataclasses.asdict(group)
    return {names.get(name, name): value for name, value in fields.items()}


def print_plan(console: SafeConsole, service: ServicePlan) -> None:
    """Print a plan as tables."""
    console.print(styled("hardware: ").append(service.configs[0].hardware, "bold"))
    console.print()
    console.print(_groups_table(service))
    console.print(_replicas_table(service))
    console.print(
        f"\nabout {service.rate:,.0f} images/s with all pods, "
        "computed from data sheets, not measured"
    )
    if service.million_usd is not None:
        console.print(
            f"about ${service.million_usd:,.2f} for a million images "
            f"at ${service.gpu_price:g} per GPU pod and hour"
        )
    for line in service.advice:
        console.print(f"advice: {line}")


def print_changes(console: SafeConsole, changes: Sequence[Change]) -> None:
    """Print the differences from the running RayService."""
    if not changes:
        console.print("\nno difference from the running RayService")
        return
    table = SafeTable("difference", "effect", "reason")
    for change in changes:
        table.add_row(change.where, styled(change.effect, "bold"), change.why)
    console.print()
    console.print(table)


def _groups_table(service: ServicePlan) -> SafeTable:
    table = SafeTable("worker group", "pods", "CPUs", "memory", "GPU")
    for group in service.groups:
        table.add_row(
            group.name,
            _bounds(group.min_pods, group.max_pods),
            str(group.cpus),
            f"{group.memory_gib} GiB",
            f"{group.gpus} × {group.accelerator}" if group.gpus else "",
        )
    return table


def _replicas_table(service: ServicePlan) -> SafeTable:
    table = SafeTable("application", "deployment", "replicas", "CPUs", "GPU", "images/s each")
    for config, plan in zip(service.configs, service.plans, strict=True):
        for name, planned in plan.deployments.items():
            table.add_row(
                config.name,
                name,
                _bounds(planned.min_replicas, planned.max_replicas),
                f"{planned.num_cpus:g}",
                f"{planned.num_gpus:g}",
                f"{planned.per_second:.0f}" if planned.per_second else "",
            )
    return table


def _bounds(minimum: int, maximum: int) -> str:
    return str(maximum) if minimum == maximum else f"{minimum} to {maximum}"
