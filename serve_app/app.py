"""Serve's import path: `serve_app.app:build_app`, what a Serve config names and the cluster
calls.
"""

import json
from typing import Any

import ray
from ray.serve import Application

from serve_app.config.service import ServiceConfig
from serve_app.graph.builder import build_graph
from serve_app.hardware.detection import Hardware, cpu_has_bfloat16, hardware_of_nodes
from serve_app.hardware.planning import plan_service, resolve_config


def build_app(args: dict[str, Any]) -> Application:
    """Build the graph on a cluster from the `args` that `siglip-serve render` wrote.

    Args:
        args: `{"config": ...}`, the frozen part of a configuration (`serve_app/config/live.py`).
    """
    config = ServiceConfig.model_validate_json(json.dumps(args["config"]))
    return build_graph(resolve_config(config, plan_service(config, cluster_hardware)))


def cluster_hardware(with_gpus: bool) -> Hardware:
    """Return what the living nodes of this cluster have."""
    nodes = [
        {"resources": node["Resources"], "labels": node.get("Labels", {})}
        for node in ray.nodes()
        if node["Alive"]
    ]
    return hardware_of_nodes(nodes, cpu_has_bfloat16(), "this cluster", with_gpus)
