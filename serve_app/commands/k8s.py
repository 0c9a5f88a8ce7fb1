"""`siglip-serve k8s`: from configurations to the worker groups of a RayService, and what a change
of it will do.
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve_app.config.service import ServiceConfig, load_config
from serve_app.errors import ConfigError
from serve_app.hardware.plan import Plan
from serve_app.kuberay.changes import as_applied, compare
from serve_app.kuberay.effects import Change
from serve_app.kuberay.groups import (
    CPU,
    GPU,
    POD_LABEL,
    WorkerGroup,
    plan_for,
    with_gpus,
    worker_groups,
)
from serve_app.kuberay.patch import apply_patch, patch_text, ray_service_patch
from serve_app.terminal.console import SafeConsole, SafeTable, output_console, styled
from serve_app.terminal.printable import json_text, print_block, print_line
from serve_app.untrusted.yaml_files import read_documents

PLAIN_WIDTH = 160
BASE_PORT = 8000
"""Of the pods of k8s/base."""
FEEDING = ("preprocessor", "postprocessor")
HOUR_S = 3600.0
APPLIED_BYTES = 230 * 2**10
"""Of a patch, from which on the manifest may be too large for the annotation that `kubectl apply`
keeps: 256 KiB of all annotations. Source: Kubernetes, `TotalAnnotationSizeLimitB` of
apimachinery/pkg/api/validation."""


def add_k8s_arguments(k8s: argparse.ArgumentParser) -> None:
    """Add `k8s plan` and `k8s render`."""
    commands = k8s.add_subparsers(title="commands", required=True, metavar="COMMAND")
    plan = commands.add_parser(
        "plan", help="print the worker groups, and what a change will do to a service that runs"
    )
    render = commands.add_parser("render", help="print the patch over the RayService of k8s/base")
    for command in (plan, render):
        command.add_argument(
            "--config",
            type=Path,
            required=True,
            nargs="+",
            metavar="FILE",
            help="a configuration; several are several applications",
        )
        command.add_argument(
            "--gpu", help="kind of GPU instead of the configuration's hardware, such as l4"
        )
        command.add_argument(
            "--max-gpus",
            type=int,
            metavar="N",
            help="with --gpu: what the cluster may grow to; 1 if left out",
        )
        command.add_argument("-v", "--verbose", action="store_true", help="log what happens")
    plan.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="the RayService that runs: kubectl get rayservice NAME -o yaml",
    )
    plan.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        help="with --against: what will be applied, as kubectl kustomize prints it",
    )
    plan.add_argument(
        "--gpu-price",
        type=float,
        metavar="USD",
        help="of a pod with a GPU an hour, for what a million images cost",
    )
    plan.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    plan.set_defaults(command=_plan)
    render.add_argument(
        "--out", type=Path, metavar="FILE", help="write it there instead of printing it"
    )
    render.set_defaults(command=_render)


def _render(given: argparse.Namespace) -> int:
    configs = _configs(given)
    patch = _patch(configs)
    for line in _base_advice(configs):
        print_line(f"advice: {line}", file=sys.stderr)
    if (nbytes := len(json.dumps(patch, ensure_ascii=False).encode())) > APPLIED_BYTES:
        told = "kubectl apply keeps a copy of the manifest, which may have 256 KiB: apply it with --server-side"
        print_line(f"advice: the patch has {nbytes / 2**10:.0f} KiB; {told}.", file=sys.stderr)
    text = patch_text(patch, [path.name for path in given.config])
    if given.out is None:
        print_block(text)
    else:
        try:
            given.out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{given.out} cannot be written: {error.strerror}.") from error
        print_line(f"{given.out} is written", file=sys.stderr)
    return 0


def _plan(given: argparse.Namespace) -> int:
    if given.manifest is not None and given.against is None:
        raise ConfigError(
            "--manifest says what will be applied, and --against over what; give both."
        )
    if given.gpu_price is not None and not 0 <= given.gpu_price < math.inf:
        raise ConfigError(f"--gpu-price is {given.gpu_price:g}; a price of 0 or more is needed.")
    configs = _configs(given)
    plans = [plan_for(config) for config in configs]
    groups = worker_groups(plans)
    changes = None if given.against is None else _changes(given, configs, groups)
    rate = sum(_rate(plan) for plan in plans)
    cost = _million_usd(groups, rate, given.gpu_price)
    advice = [*_advice(configs, plans), *_base_advice(configs)]
    if given.json:
        told: dict[str, Any] = {
            "hardware": configs[0].hardware,
            "groups": [dataclasses.asdict(group) for group in groups],
        }
        told |= {"images_per_second": rate, "advice": advice} | (
            {} if cost is None else {"usd_per_million_images": cost}
        )
        told |= {} if changes is None else {"changes": [dataclasses.asdict(c) for c in changes]}
        print_block(json_text(told, indent=2) + "\n")
        return 0
    console = output_console(plain_width=PLAIN_WIDTH)
    _print_groups(console, configs, plans, groups)
    console.print(
        f"\nabout {rate:,.0f} images/s with all pods, computed from the data sheet, not measured"
    )
    if cost is not None:
        console.print(
            f"about ${cost:,.2f} for a million images at ${given.gpu_price:g} a GPU pod and hour"
        )
    for line in advice:
        console.print(f"advice: {line}")
    if changes is not None:
        _print_changes(console, changes)
    return 0


def _rate(plan: Plan) -> float:
    """Return the images a second that encoders do and Preprocessors decode for them."""
    decoding = plan.deployments["preprocessor"]
    return min(plan.images_per_second, decoding.max_replicas * decoding.per_second)


def _million_usd(
    groups: Sequence[WorkerGroup], rate: float, gpu_price: float | None
) -> float | None:
    """Return what a million images cost; None without a price or a GPU."""
    gpus = sum(group.max_pods * group.gpus for group in groups)
    return gpu_price * gpus / HOUR_S / rate * 1e6 if gpu_price is not None and gpus else None


def _configs(given: argparse.Namespace) -> list[ServiceConfig]:
    if given.max_gpus is not None and given.gpu is None:
        raise ConfigError("--max-gpus says how many, and --gpu of which kind; give both.")
    if given.max_gpus is not None and given.max_gpus < 1:
        raise ConfigError(f"--max-gpus is {given.max_gpus}; at least 1 is needed.")
    configs = [load_config(path) for path in given.config]
    if len(configs) > 1:
        from serve_app.graph.render import render_serve_config

        render_serve_config(*configs)  # refuses what cannot stand side by side
    if given.gpu is None:
        return configs
    if len(configs) > 1:
        raise ConfigError(
            "--gpu does not go with several configurations; write hardware and num_gpus into each."
        )
    return [with_gpus(configs[0], given.gpu, given.max_gpus or 1)]


def _patch(configs: Sequence[ServiceConfig]) -> list[dict[str, Any]]:
    from serve_app.graph.render import serve_config_text

    return ray_service_patch(
        serve_config_text(*configs),
        worker_groups([plan_for(config) for config in configs]),
        configs,
    )


def _changes(
    given: argparse.Namespace, configs: Sequence[ServiceConfig], groups: Sequence[WorkerGroup]
) -> tuple[Change, ...]:
    running = _ray_service(given.against)
    if given.manifest is not None:
        return compare(running, _ray_service(given.manifest))
    applied = as_applied(running)
    patch = _patch(configs)
    has, made = (
        {name for name in (CPU, GPU) if name in names}
        for names in (_groups_of(applied), [group.name for group in groups])
    )
    if has != made:
        told = "give what will be applied by --manifest, as kubectl kustomize prints it"
        raise ConfigError(
            f"the RayService that runs has the worker groups {_listed(has)}, and the configuration makes {_listed(made)}; {told}."
        )
    return compare(running, apply_patch(applied, patch))


def _groups_of(manifest: dict[str, Any]) -> list[str]:
    cluster = (manifest.get("spec") or {}).get("rayClusterConfig") or {}
    return [str(group.get("groupName")) for group in cluster.get("workerGroupSpecs") or []]


def _listed(names: set[str]) -> str:
    return " and ".join(sorted(names)) or "of nobody"


def _ray_service(path: Path) -> dict[str, Any]:
    """Return the RayService of a file of manifests."""
    found = [one for one in read_documents(path) if isinstance(one, dict)]
    listed = [item for one in found for item in (one.get("items") or [one])]
    services = [one for one in listed if isinstance(one, dict) and one.get("kind") == "RayService"]
    if len(services) != 1:
        raise ConfigError(f"{path} holds {len(services)} RayServices; one is needed.")
    return services[0]


def _print_groups(
    console: SafeConsole,
    configs: Sequence[ServiceConfig],
    plans: Sequence[Plan],
    groups: Sequence[WorkerGroup],
) -> None:
    console.print(styled("hardware: ").append(configs[0].hardware, "bold"))
    console.print()
    pods = SafeTable("worker group", "pods", "CPUs", "memory", "GPU")
    for group in groups:
        gpu = f"{group.gpus} × {group.accelerator}" if group.gpus else ""
        pods.add_row(
            group.name,
            _bounds(group.min_pods, group.max_pods),
            str(group.cpus),
            f"{group.memory_gib} GiB",
            gpu,
        )
    console.print(pods)
    replicas = SafeTable("application", "deployment", "replicas", "CPUs", "GPU", "images/s each")
    for config, plan in zip(configs, plans, strict=True):
        for name, planned in plan.deployments.items():
            rate = f"{planned.per_second:.0f}" if planned.per_second else ""
            bounds = _bounds(planned.min_replicas, planned.max_replicas)
            replicas.add_row(
                config.name, name, bounds, f"{planned.num_cpus:g}", f"{planned.num_gpus:g}", rate
            )
    console.print(replicas)


def _advice(configs: Sequence[ServiceConfig], plans: Sequence[Plan]) -> list[str]:
    unpinned = [
        config.siglip.model
        for config in configs
        if "/" in config.siglip.model and config.revision is None
    ]
    pin = [
        f"{model} has no revision; `siglip-serve fetch {model}` prints the commit to pin."
        for model in unpinned
    ]
    open_ones = [config.name for config in configs if config.access.api_keys is None]
    keys = [
        f"{name} asks for no API key (access.api_keys); whoever reaches it may use it."
        for name in open_ones
    ]
    single = [
        c.name
        for c in configs
        if c.serving.preprocessor.min_replicas < 2
        and c.serving.preprocessor.num_replicas in ("auto", 1)
    ]
    alone = [
        f"{name} may run on one Preprocessor, whose end is an outage; set serving.preprocessor.min_replicas: 2."
        for name in single
    ]
    slow = [
        f"decoding limits {config.name} to {_rate(plan):,.0f} of {plan.images_per_second:,.0f} images/s; "
        "raise the CPUs in hardware, or preprocessor.max_replicas."
        for config, plan in zip(configs, plans, strict=True)
        if plan.precision.device == "cuda" and _rate(plan) < plan.images_per_second
    ]
    return [
        *pin,
        *keys,
        *alone,
        *_strays(configs, plans),
        *slow,
        *(line for plan in plans for line in plan.advice),
    ]


def _strays(configs: Sequence[ServiceConfig], plans: Sequence[Plan]) -> list[str]:
    """Return a sentence for each application whose CPU deployments may take an encoder's place."""
    found = []
    for config, plan in zip(configs, plans, strict=True):
        loose = [
            name
            for name in FEEDING
            if getattr(config.serving, name).label_selector.get(POD_LABEL) != CPU
        ]
        if plan.precision.device == "cuda" and loose:
            found.append(
                f"{' and '.join(loose)} of {config.name} may stand in GPU pods and take the CPUs of their encoders; "
                f"set label_selector: {{{POD_LABEL}: {CPU}}}."
            )
    return found


def _base_advice(configs: Sequence[ServiceConfig]) -> list[str]:
    """Return what k8s/base has otherwise than a configuration says."""
    port = configs[0].serving.port
    ingress = configs[0].serving.ingress
    ports = [
        f"serving.port is {port}, and the pods, the Service and the policies of k8s/base open {BASE_PORT}; leave it out."
    ]
    python = [
        "serving.ingress is python, and the pods of k8s/base start HAProxy; take its variables out of their environment."
    ]
    return [*(ports if port != BASE_PORT else []), *(python if ingress == "python" else [])]


def _print_changes(console: SafeConsole, changes: Sequence[Change]) -> None:
    if not changes:
        console.print("\nnothing differs from what runs")
        return
    table = SafeTable("what differs", "what it does", "")
    for change in changes:
        table.add_row(change.where, styled(change.effect, "bold"), change.why)
    console.print()
    console.print(table)


def _bounds(least: int, most: int) -> str:
    return str(most) if least == most else f"{least} to {most}"
