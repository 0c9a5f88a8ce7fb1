"""`siglip-serve deploy`: deploys a configuration to a running Ray cluster."""

import argparse
import sys
from pathlib import Path

from serve_app.commands.arguments import START_TIMEOUT_S
from serve_app.commands.plan import hardware_of_cluster
from serve_app.config.service import load_config
from serve_app.graph.deploy import Cluster
from serve_app.graph.serve_config import render_serve_config
from serve_app.hardware.planning import plan_service
from serve_app.terminal.printable import print_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `deploy`."""
    parser.add_argument("config", type=Path)
    parser.add_argument(
        "--address", required=True, help="the cluster's dashboard, such as http://127.0.0.1:8265"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=START_TIMEOUT_S,
        help="seconds to wait until the service runs",
    )


def run(args: argparse.Namespace) -> int:
    """Deploy a configuration and wait until it runs.

    Raises:
        ConfigError: It is not valid, does not fit the cluster's hardware, or does not start.
    """
    config = load_config(args.config)
    cluster = Cluster(args.address)

    # also planned here, so that a configuration that does not fit is rejected before deployment
    plan = plan_service(config, hardware_of_cluster(config, cluster))
    for line in plan.advice:
        print_line(f"advice: {line}", file=sys.stderr)

    cluster.deploy(render_serve_config(config))
    cluster.wait_until_running(
        config.name, args.timeout, lambda state: print_line(state, file=sys.stderr)
    )
    print_line(f"{config.name} is running at {args.address}")
    return 0
