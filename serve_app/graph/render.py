"""From our YAML to the Serve config that `serve deploy`, the dashboard and a RayService take.

Serve ignores unknown keys, restarts every replica when `args` change and replaces override blocks instead of merging
them. So what is rendered is checked by our own strict schema first, holds only what Serve changes in place in its
`deployments` section, and keeps the live part out of `args`.
"""

from typing import Any

from serve_app.config import ServiceConfig
from serve_app.graph.autoscaling import POLICY
from serve_app.graph.builder import live_options, scales, user_config
from serve_app.live import frozen_part

IMPORT_PATH = "serve_app.app:build_app"
REQUEST_TIMEOUT_MARGIN_S = 5.0
"""Serve cuts a request this much later than the service itself would, so that clients see our error and not Serve's."""


def render_serve_config(config: ServiceConfig) -> dict[str, Any]:
    """Return the Serve config (`ServeDeploySchema`) of a service."""
    live = user_config(config)
    deployments = [
        {"name": name} | live_options(scale) | ({"user_config": live[name]} if name in live else {})
        for name, scale in scales(config).items()
    ]
    tracing = config.telemetry.tracing
    traced = {"tracing_config": tracing.model_dump(mode="json")} if tracing.enabled else {}
    return traced | {
        "proxy_location": "EveryNode",
        "http_options": {
            "host": config.serving.host,
            "port": config.serving.port,
            "request_timeout_s": config.serving.request_timeout_s + REQUEST_TIMEOUT_MARGIN_S,
        },
        "applications": [
            {
                "name": config.name,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": {"config": frozen_part(config)},
                # one line a request costs as much as scoring it; the metrics count requests, and errors are logged
                "logging_config": {"enable_access_log": False},
                "autoscaling_policy": {
                    "policy_function": POLICY,
                    "policy_kwargs": {"scale_down_delay_s": config.serving.scale_down_delay_s},
                },
                "deployments": deployments,
            }
        ],
    }
