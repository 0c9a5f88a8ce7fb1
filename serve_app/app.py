"""Serve's import path: `serve_app.app:build_app`, what a Serve config names and the cluster calls."""

import json
from typing import Any

import ray
from ray.serve import Application

from serve_app.config import ServiceConfig
from serve_app.graph.builder import build_graph


def build_app(args: dict[str, Any]) -> Application:
    """Build the graph on a cluster from the `args` that `siglip-serve render` wrote.

    Args:
        args: `{"config": ...}`, the frozen part of a configuration (`serve_app/live.py`).
    """
    config = ServiceConfig.model_validate_json(json.dumps(args["config"]))
    return build_graph(config, has_gpus=ray.cluster_resources().get("GPU", 0) > 0)
