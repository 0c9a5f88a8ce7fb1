"""What a new Serve config does to a running Serve, by the rules of Ray 2.60.

They are read from its source and partly observed. A test checks them against Ray's own functions
for every option that Serve has.
"""

from collections.abc import Iterator
from typing import Any

from serve_app.kuberay.effects import Change, Effect, differing

AT_START = ("proxy_location", "http_options", "grpc_options", "controller_options")
"""Keys that Serve reads when it starts on a cluster, and never again.

Source: `put_all_applications` of ray/dashboard/modules/serve/serve_head.py.
"""
TRACING = "tracing_config"
"""A key that applies to what starts after it, and that Serve keeps when it is removed.

Source: `apply_config` of ray/serve/_private/controller.py.
"""
LIVE_APPLICATION_KEYS = ("logging_config", "route_prefix", "external_scaler_enabled")
"""Keys of an application that change without a restart.

The others are in its code version: import_path, runtime_env, args and autoscaling_policy.

Source: `get_app_code_version` of ray/serve/_private/deploy_utils.py; `requires_actor_restart` of
version.py.
"""
LIVE_KEYS = (
    "num_replicas",
    "max_ongoing_requests",
    "max_queued_requests",
    "backpressure_config",
    "user_config",
    "graceful_shutdown_timeout_s",
    "graceful_shutdown_wait_loop_s",
    "health_check_period_s",
    "health_check_timeout_s",
    "logging_config",
    "rolling_update_percentage",
    "max_surge_percent",
)
"""Keys of a deployment that change without a restart.

Source: every `update_type` but HeavyWeight of ray/serve/_private/config.py, `DeploymentConfig`.
"""
CODE_KEYS = ("request_router_config", "deployment_actors")
"""Keys of a deployment that are in the code version of its application.

Source: `get_app_code_version`.
"""
SCALING = "autoscaling_config"
"""A key of a deployment whose presence and `policy` are in the code version of its application; its
other values are not."""
EVERYTHING = "every deployment of the application"
LIVE = "without a restart"


def serve_changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    """Yield the differences between two Serve configs and the effect of each.

    Args:
        before: The config that Serve has.
        after: The config that it will get.
    """
    for key in sorted({*before, *after} - {"applications"}):
        if before.get(key) != after.get(key):
            yield _cluster_change(key, after.get(key))
    old = _by_name(before.get("applications"))
    new = _by_name(after.get("applications"))
    for name in sorted({*old, *new}):
        if name not in new:
            yield Change(f"application {name}", Effect.IN_PLACE, "it ends")
        elif name not in old:
            yield Change(f"application {name}", Effect.IN_PLACE, "it starts beside the others")
        else:
            yield from _application_changes(name, old[name], new[name])


def _by_name(named: list[dict[str, Any]] | None) -> dict[str, dict[str, Any]]:
    return {one.get("name", "default"): one for one in named or []}


def _cluster_change(key: str, wanted: Any) -> Change:
    if key in AT_START:
        why = (
            "Serve reads it when it starts; change something of rayClusterConfig too, "
            "such as an annotation of the head's template"
        )
        return Change(key, Effect.NOT_TAKEN, why)
    if key == TRACING and wanted is None:
        return Change(key, Effect.NOT_TAKEN, "Serve keeps what it has; set enabled: false")
    if key == TRACING:
        return Change(key, Effect.IN_PLACE, "for replicas that start from now on")
    return Change(key, Effect.IN_PLACE, LIVE)


def _application_changes(
    name: str, before: dict[str, Any], after: dict[str, Any]
) -> Iterator[Change]:
    for key in sorted({*before, *after} - {"deployments"}):
        effect, why = (
            (Effect.IN_PLACE, LIVE)
            if key in LIVE_APPLICATION_KEYS
            else (Effect.ROLLING, EVERYTHING)
        )
        for path in differing(before.get(key), after.get(key), f"{name}: {key}"):
            yield Change(path, effect, why)
    old = _by_name(before.get("deployments"))
    new = _by_name(after.get("deployments"))
    for deployment in (*new, *(gone for gone in old if gone not in new)):
        yield from _deployment_changes(
            f"{name}: {deployment}", old.get(deployment, {}), new.get(deployment, {})
        )


def _deployment_changes(
    where: str, before: dict[str, Any], after: dict[str, Any]
) -> Iterator[Change]:
    for key in sorted({*before, *after} - {"name"}):
        if before.get(key) == after.get(key):
            continue
        if key in CODE_KEYS or (key == SCALING and _policy(before) != _policy(after)):
            yield Change(f"{where}.{key}", Effect.ROLLING, EVERYTHING)
        elif key in LIVE_KEYS or key == SCALING:
            yield Change(f"{where}.{key}", Effect.IN_PLACE, LIVE)
        else:
            yield Change(f"{where}.{key}", Effect.ROLLING, "this deployment")


def _policy(deployment: dict[str, Any]) -> tuple[bool, Any]:
    """Return whether a deployment has an `autoscaling_config`, and the policy in it."""
    scaling = deployment.get(SCALING)
    return isinstance(scaling, dict), scaling.get("policy") if isinstance(scaling, dict) else None
