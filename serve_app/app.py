"""The import path in Serve configs, `serve_app.app:build_app`, which clusters call."""

import json
from typing import Any

from ray.serve import Application

from serve_app.config.service import ServiceConfig
from serve_app.graph.builder import build_graph
from serve_app.hardware.planning import plan_service
from serve_app.processes.cluster_nodes import cluster_hardware


def build_app(args: dict[str, Any]) -> Application:
    """Build the graph on a cluster from the `args` that `siglip-serve render` wrote.

    Args:
        args: `{"config": ...}`, the frozen part of a configuration (`serve_app/config/live.py`).
    """
    config = ServiceConfig.model_validate_json(json.dumps(args["config"]))
    hardware = cluster_hardware(config.hardware, config.siglip)
    return build_graph(config, plan_service(config, hardware))
