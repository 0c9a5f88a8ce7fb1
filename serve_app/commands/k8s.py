"""`siglip-serve k8s plan|render`: makes the worker groups of a RayService from configurations."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from serve_app.commands.arguments import add_flag
from serve_app.commands.k8s_advice import base_advice
from serve_app.commands.k8s_changes import changes_of, service_patch
from serve_app.commands.k8s_plan import ServicePlan, as_json, print_changes, print_plan
from serve_app.config.service import ServiceConfig, load_config
from serve_app.errors import ConfigError
from serve_app.graph.serve_config import render_serve_config
from serve_app.kuberay.groups import plan_for, with_gpus, worker_groups
from serve_app.kuberay.patch import patch_text
from serve_app.terminal.console import output_console
from serve_app.terminal.printable import json_text, print_block, print_line

PLAIN_WIDTH = 160
"""Number of columns if standard output is not a terminal."""
MAX_APPLIED_BYTES = 230 * 2**10
"""Maximum size of a patch for `kubectl apply`, which stores the manifest in an annotation.

All annotations of an object may have 256 KiB. Source: Kubernetes, `TotalAnnotationSizeLimitB` of
apimachinery/pkg/api/validation.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `k8s plan` and `k8s render`."""
    actions = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    plan = actions.add_parser(
        "plan", help="print the worker groups, and what a change does to a running service"
    )
    render = actions.add_parser("render", help="print the patch over the RayService of k8s/base")
    for action in (plan, render):
        _add_config_arguments(action)
    _add_plan_arguments(plan)
    plan.set_defaults(action=_plan)
    render.add_argument(
        "--out", type=Path, metavar="FILE", help="write the patch to this file instead"
    )
    render.set_defaults(action=_render)


def _add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        nargs="+",
        metavar="FILE",
        help="one or more configurations, each of which becomes an application",
    )
    parser.add_argument(
        "--gpu", help="kind of GPU, such as l4; default: the configuration's hardware"
    )
    parser.add_argument(
        "--max-gpus",
        type=int,
        metavar="N",
        help="with --gpu: maximum number of GPUs in the cluster; default: 1",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="log more"
    )


def _add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="the running RayService, as printed by kubectl get rayservice NAME -o yaml",
    )
    parser.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        help="with --against: the manifests to apply, as printed by kubectl kustomize",
    )
    parser.add_argument(
        "--gpu-price",
        type=float,
        metavar="USD",
        help="price of one GPU pod per hour, to compute the cost of a million images",
    )
    add_flag(parser, "--json", "print one JSON object, not tables")


def run(args: argparse.Namespace) -> int:
    """Run `k8s plan` or `k8s render`.

    Raises:
        ConfigError: A configuration, a manifest or an argument is not valid.
    """
    status: int = args.action(args)
    return status


def _render(args: argparse.Namespace) -> int:
    configs = _configs_of(args)
    patch = service_patch(configs)
    for line in base_advice(configs):
        print_line(f"advice: {line}", file=sys.stderr)
    nbytes = len(json.dumps(patch, ensure_ascii=False).encode())
    if nbytes > MAX_APPLIED_BYTES:
        print_line(
            f"advice: the patch has {nbytes / 2**10:.0f} KiB, and kubectl apply stores at most "
            "256 KiB of a manifest in an annotation; use kubectl apply --server-side.",
            file=sys.stderr,
        )

    text = patch_text(patch, [path.name for path in args.config])
    if args.out is None:
        print_block(text)
        return 0
    try:
        args.out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{args.out} cannot be written: {error.strerror}.") from error
    print_line(f"written: {args.out}", file=sys.stderr)
    return 0


def _plan(args: argparse.Namespace) -> int:
    _check_plan_arguments(args)
    configs = _configs_of(args)
    plans = tuple(plan_for(config) for config in configs)
    service = ServicePlan(tuple(configs), plans, tuple(worker_groups(plans)), args.gpu_price)
    changes = None
    if args.against is not None:
        changes = changes_of(args.against, args.manifest, configs, service.groups)

    if args.json:
        print_block(json_text(as_json(service, changes), indent=2) + "\n")
        return 0
    console = output_console(PLAIN_WIDTH)
    print_plan(console, service)
    if changes is not None:
        print_changes(console, changes)
    return 0


def _check_plan_arguments(args: argparse.Namespace) -> None:
    if args.manifest is not None and args.against is None:
        raise ConfigError(
            "--manifest needs --against, the running RayService to compare with; pass both."
        )
    if args.gpu_price is not None and not 0 <= args.gpu_price < math.inf:
        raise ConfigError(f"--gpu-price is {args.gpu_price:g}; it must be 0 or more.")


def _configs_of(args: argparse.Namespace) -> Sequence[ServiceConfig]:
    if args.max_gpus is not None and args.gpu is None:
        raise ConfigError("--max-gpus needs --gpu, the kind of GPU; pass both.")
    if args.max_gpus is not None and args.max_gpus < 1:
        raise ConfigError(f"--max-gpus is {args.max_gpus}; it must be at least 1.")
    configs = [load_config(path) for path in args.config]
    if len(configs) > 1:
        render_serve_config(*configs)  # rejects configurations that cannot run side by side
    if args.gpu is None:
        return configs
    if len(configs) > 1:
        raise ConfigError(
            "--gpu does not go with several configurations; "
            "write hardware and num_gpus into each of them."
        )
    return [with_gpus(configs[0], args.gpu, args.max_gpus or 1)]
