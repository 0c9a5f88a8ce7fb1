"""Runs the Ray node of `siglip-serve serve`, and ends every process that it started."""

import contextlib
import logging
import math
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from serve_app.config.service import ServiceConfig
from serve_app.errors import ConfigError
from serve_app.graph import haproxy, proxy
from serve_app.graph.deploy import Cluster
from serve_app.graph.haproxy import LOOPBACK
from serve_app.graph.profiles import haproxy_program, ingress_profile, node_environment
from serve_app.hardware.detection import detect_machine
from serve_app.hardware.plan import Plan
from serve_app.hardware.planning import hardware_here, plan_service
from serve_app.processes.ports import reserved_address
from serve_app.processes.private_ray import PrivateFolder, private_folder, private_ray

logger = logging.getLogger(__name__)

LOCAL_ENVIRONMENT = {
    # on one machine with one user, draining need not take longer than the running requests
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": proxy.IMPORT_PATH,
}
FIXED_PORTS = (
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)
"""Variables of ports that are the same for every service by default. HAProxy falls back to one of
them. If two services shared it, clients of one service would get responses from the other."""
FIRST_FIXED_PORT = 8
"""Index of the first such port in the ports of the run; Ray uses the ports before it."""
FIRST_REPLICA_PORT = 16
"""Index of the first port that replicas use."""
MAX_CONNECTIONS = 20_000
"""Maximum number of HAProxy connections, if the limit on open files allows it."""
FILES_FOR_EACH_CONNECTION = 3
SERVE_SHUTDOWN_S = 7.0
END_TIMEOUT_S = 3.0
"""Timeouts of an orderly shutdown. Together with Ray's own, they are below the supervisor's."""


@dataclass(frozen=True, slots=True)
class LocalNode:
    """A running node of this machine.

    Attributes:
        cluster: The cluster, which is addressed through its dashboard.
        folder: The folder with logs, token and sockets of this run.
    """

    cluster: Cluster
    folder: PrivateFolder

    @property
    def logs(self) -> Path:
        """The folder of Ray's logs."""
        return self.folder.path / "ray" / "session_latest" / "logs"


@contextlib.contextmanager
def local_node(
    config: ServiceConfig, resources: Mapping[str, int] | None = None
) -> Iterator["LocalNode"]:
    """Start a Ray node on this machine, and end every process that it started afterwards.

    The environment is set before Ray is imported, because Serve reads its settings at import in
    every process.

    Args:
        config: The configuration to serve.
        resources: `num_cpus` and `num_gpus` of the node, instead of what Ray detects.

    Raises:
        ConfigError: The port is taken, or this machine cannot run the configuration.
    """
    with reserved_address(listening_host(config), config.serving.port):
        yield from _running_node(config, resources or {})


def _running_node(config: ServiceConfig, resources: Mapping[str, int]) -> Iterator["LocalNode"]:
    # plan before Ray starts, so that a configuration that cannot work is refused early
    plan = plan_service(config, hardware_here(config.hardware, config.siglip))
    _check_gpus(plan, resources.get("num_gpus", detect_machine().gpus))
    num_cpus = max(os.cpu_count() or 1, math.ceil(plan.min_cpus))
    options: dict[str, Any] = {"num_cpus": num_cpus, **resources}
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with private_folder() as folder:
        environment = node_environment(config.serving.ingress) | LOCAL_ENVIRONMENT
        own = _own_serve(folder, config)
        started: list[psutil.Process] = []
        try:
            with private_ray(
                folder, environment, own, include_dashboard=True, namespace="serve", **options
            ) as node:
                assert node.dashboard is not None, "include_dashboard"
                try:
                    yield LocalNode(Cluster(node.dashboard), folder)
                finally:
                    started = [
                        p for p in psutil.Process().children(recursive=True) if p.pid not in before
                    ]
                    _shut_down_serve(started)
        finally:  # also if a second Ctrl-C interrupts the shutdown
            _end(
                started
                or [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
            )


def serve_config_here(config: ServiceConfig) -> dict[str, Any]:
    """Return the Serve config for a local node.

    Behind HAProxy the replicas listen on loopback, and HAProxy listens on the service's address.
    """
    # imported here, because Ray reads the environment that `local_node` sets when it is imported
    from serve_app.graph.serve_config import render_serve_config

    rendered = render_serve_config(config)
    behind_haproxy = ingress_profile(config.serving.ingress) == "haproxy"
    rendered["http_options"]["host"] = LOOPBACK if behind_haproxy else listening_host(config)
    return rendered


def listening_host(config: ServiceConfig) -> str:
    """Return the address that the service listens on: loopback by default."""
    return LOOPBACK if config.serving.host == "auto" else config.serving.host


def _own_serve(folder: PrivateFolder, config: ServiceConfig) -> dict[str, str]:
    """Return settings that separate the Serve instances on one machine."""
    ports = folder.ports
    own = {name: str(ports[FIRST_FIXED_PORT + i]) for i, name in enumerate(FIXED_PORTS)}
    own["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"] = str(ports[FIRST_REPLICA_PORT])
    own["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"] = str(ports[-1])
    if ingress_profile(config.serving.ingress) != "haproxy":
        return own
    home = folder.path / "h"  # one letter, because socket paths have at most 97 characters
    home.mkdir(mode=0o700)
    program = home / "haproxy"
    program.write_text(haproxy.launcher(sys.executable), encoding="utf-8")
    program.chmod(0o700)
    connections = _max_connections()
    return own | {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(program),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(home / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(home / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(home / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(home),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(home / "server-state"),
        "RAY_SERVE_HAPROXY_MAXCONN": str(connections),
        haproxy.PROGRAM_VARIABLE: os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH")
        or haproxy_program(),
        haproxy.HOST_VARIABLE: listening_host(config),
        haproxy.CONNECTIONS_VARIABLE: str(connections // 2),
    }


def _max_connections() -> int:
    """Return the maximum number of HAProxy connections.

    Each connection needs two files, and pipes for splicing need up to half a file more.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_CONNECTIONS * FILES_FOR_EACH_CONNECTION if hard == resource.RLIM_INFINITY else hard
    return max(256, min(MAX_CONNECTIONS, files // FILES_FOR_EACH_CONNECTION - 128))


def _check_gpus(plan: Plan, gpus: int) -> None:
    if plan.min_gpus > gpus + 1e-6:
        raise ConfigError(
            f"the plan for {plan.hardware.described} needs at least {plan.min_gpus:g} GPUs, "
            f"but this machine has {gpus}; set hardware to auto, "
            "or deploy to a cluster with enough GPUs."
        )


def _shut_down_serve(processes: list[psutil.Process]) -> None:
    """End the replicas in order if the raylet still runs; else kill the node's processes.

    Serve and Ray would wait up to a minute for a dead raylet. The raylet dies first if all
    processes of a container or a systemd unit receive SIGTERM.
    """
    deadline_s = time.monotonic() + SERVE_SHUTDOWN_S
    ending = threading.Thread(target=_end_serve, name="serve-shutdown", daemon=True)
    if _has_raylet(processes):
        ending.start()
    while ending.is_alive() and _has_raylet(processes) and time.monotonic() < deadline_s:
        ending.join(timeout=0.1)
    if not _has_raylet(processes):
        _end(processes, timeout_s=0.0)


def _has_raylet(processes: list[psutil.Process]) -> bool:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == "raylet" and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def _end_serve() -> None:
    # imported here, because Ray reads the environment that `local_node` sets when it is imported
    from ray import is_initialized, serve

    if is_initialized():
        # at INFO, Serve logs that there is nothing to shut down
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            serve.shutdown()
        except Exception as error:  # a half-started Serve must not prevent the rest of the shutdown
            logger.warning("Serve did not shut down: %s", error)


def _end(processes: list[psutil.Process], timeout_s: float = END_TIMEOUT_S) -> None:
    """End the processes that Ray left, such as HAProxy, which outlives the actor that started it.

    Args:
        processes: The processes to end.
        timeout_s: Time to wait after SIGTERM before they are killed.
    """
    _, alive = psutil.wait_procs(processes, timeout=1.0)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(alive, timeout=timeout_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
