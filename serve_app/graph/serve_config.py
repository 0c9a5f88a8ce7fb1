"""Renders the Serve config that `serve deploy` and a RayService accept.

Serve ignores unknown keys, restarts every replica when `args` change, and replaces override blocks
instead of merging them. Therefore our own strict schema checks the configuration first,
`deployments` contains only options that Serve changes in place, and `args` does not contain live
settings.
"""

import math
from collections.abc import Sequence
from typing import Any

import yaml

from serve_app.config.live import frozen_part
from serve_app.config.service import ServiceConfig
from serve_app.errors import ConfigError
from serve_app.graph.autoscaling import POLICY
from serve_app.graph.builder import deployment_scales, live_options, user_config

IMPORT_PATH = "serve_app.app:build_app"
REQUEST_TIMEOUT_MARGIN_S = 5.0
"""Serve's timeout exceeds the service's by this much, so that clients receive our error."""
EVERY_ADDRESS = "0.0.0.0"
"""Address that nodes of a cluster listen on, because clients and proxies are on other machines."""
CLUSTER_KEYS = ("host", "port", "request_timeout_s")
"""Keys of `serving` that apply to the whole cluster."""


def render_serve_config(*configs: ServiceConfig) -> dict[str, Any]:
    """Return the Serve config (`ServeDeploySchema`) of one or more services on one cluster.

    Raises:
        ConfigError: The configurations cannot share a cluster.
    """
    _check_side_by_side(configs)
    tracing = configs[0].telemetry.tracing
    traced = {"tracing_config": tracing.model_dump(mode="json")} if tracing.enabled else {}
    serving = configs[0].serving
    return traced | {
        "proxy_location": "EveryNode",
        "http_options": {
            "host": EVERY_ADDRESS if serving.host == "auto" else serving.host,
            "port": serving.port,
            "request_timeout_s": serving.request_timeout_s + REQUEST_TIMEOUT_MARGIN_S,
        },
        "applications": [_application(config) for config in configs],
    }


def serve_config_text(*configs: ServiceConfig) -> str:
    """Return the Serve config as YAML with each tag on one line.

    This keeps a vocabulary of thousands of tags small enough for a manifest.

    Raises:
        ConfigError: See `render_serve_config`.
    """
    return yaml.dump(
        render_serve_config(*configs),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=math.inf,
    )


class _Dumper(yaml.SafeDumper):
    """Writes each item of a list on one line, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: _Dumper, data: list[Any]) -> yaml.Node:
    node = dumper.represent_list(data)
    for item in node.value:
        if isinstance(item, yaml.MappingNode) and not any(
            isinstance(value, yaml.MappingNode) for _, value in item.value
        ):
            item.flow_style = True
    return node


_Dumper.add_representer(list, _represent_list)


def _application(config: ServiceConfig) -> dict[str, Any]:
    live = user_config(config)
    deployments = [
        {"name": name} | live_options(scale) | ({"user_config": live[name]} if name in live else {})
        for name, scale in deployment_scales(config).items()
    ]
    return {
        "name": config.name,
        "route_prefix": config.serving.route_prefix,
        "import_path": IMPORT_PATH,
        "args": {"config": frozen_part(config)},
        # a log line per request costs as much as scoring it; metrics count requests, and the
        # service logs errors
        "logging_config": {"enable_access_log": False},
        "autoscaling_policy": {
            "policy_function": POLICY,
            "policy_kwargs": {"scale_down_delay_s": config.serving.scale_down_delay_s},
        },
        "deployments": deployments,
    }


def _check_side_by_side(configs: Sequence[ServiceConfig]) -> None:
    """Raise `ConfigError` if applications share a name or differ in a setting of the cluster."""
    own = {
        "name": [config.name for config in configs],
        "serving.route_prefix": [config.serving.route_prefix for config in configs],
    }
    for what, values in own.items():
        if repeated := {value for value in values if values.count(value) > 1}:
            raise ConfigError(
                f"{what} {', '.join(sorted(repeated))} is used by more than one configuration; "
                "each application needs its own."
            )
    for key in CLUSTER_KEYS:
        if len({getattr(config.serving, key) for config in configs}) > 1:
            raise ConfigError(
                f"serving.{key} applies to the whole cluster, but differs between the "
                "configurations; set the same value in each."
            )
    if len({config.telemetry.tracing for config in configs}) > 1:
        raise ConfigError(
            "telemetry.tracing applies to the whole cluster, but differs between the "
            "configurations; set the same value in each."
        )
