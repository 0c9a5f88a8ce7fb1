"""A Ray node for one machine: started for `siglip-serve serve`, and ended with everything that it started."""

import contextlib
import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from serve_app.config import ServiceConfig
from serve_app.errors import ConfigError
from serve_app.graph.profiles import node_environment
from serve_app.hardware.detection import detect_machine
from serve_app.hardware.plan import Plan
from serve_app.planning import plan_service

if TYPE_CHECKING:
    from serve_app.graph.deploy import Cluster

logger = logging.getLogger(__name__)

LOCAL_ENVIRONMENT = {
    # the dashboard listens on 127.0.0.1 only, and a token would be written to the user's home folder
    "RAY_AUTH_MODE": "disabled",
    # one machine and one user: nobody waits to be drained for longer than its requests take
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
}
HAPROXY_PORTS = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT")
"""Fixed by default, so a second service on the machine would not start; here each takes a free one."""
END_TIMEOUT_S = 10.0


def check_port_free(host: str, port: int) -> None:
    """Raise `ConfigError` if something listens on a port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} is taken by another process ({error.strerror}); end it, or set serving.port in the configuration."
            ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def local_node(config: ServiceConfig, resources: Mapping[str, int] | None = None) -> Iterator["Cluster"]:
    """Start a Ray node on this machine and end it, and every process below this one, on the way out.

    The environment is set before Ray is imported: Serve reads its settings at import, in every process.

    Args:
        config: What is to be served on it.
        resources: `num_cpus` and `num_gpus` that Ray is told there are, in place of what it finds.

    Raises:
        ConfigError: The port is taken, or this machine cannot run what is asked for.
    """
    check_port_free(config.serving.host, config.serving.port)
    plan = plan_service(config, detect_machine)  # here already, so that what cannot work is refused before Ray starts
    needed = sum(planned.num_cpus * planned.min_replicas for planned in plan.deployments.values())
    _check_gpus(plan, (resources or {}).get("num_gpus", detect_machine().gpus))
    ports = {key: str(_free_port()) for key in HAPROXY_PORTS}
    for key, value in (node_environment(config.serving.ingress) | LOCAL_ENVIRONMENT | ports).items():
        os.environ.setdefault(key, value)  # what the user set stays
    os.environ["RAY_AUTH_MODE"] = LOCAL_ENVIRONMENT["RAY_AUTH_MODE"]
    import ray

    from serve_app.graph.deploy import Cluster

    before = {process.pid for process in psutil.Process().children(recursive=True)}
    try:
        context = ray.init(
            "local",  # without it Ray joins a cluster that happens to run on this machine
            **({"num_cpus": max(os.cpu_count() or 1, math.ceil(needed))} | dict(resources or {})),
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.ERROR,
            namespace="serve",
        )
        yield Cluster(f"http://{context.dashboard_url}")
    finally:
        started = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        try:
            _shut_down()
        finally:  # also when a second Ctrl-C cuts the first one's work short
            _end(started)


def _check_gpus(plan: Plan, gpus: int) -> None:
    needed = sum(planned.num_gpus * planned.min_replicas for planned in plan.deployments.values())
    if needed > gpus + 1e-6:
        raise ConfigError(
            f"the plan for {plan.hardware.described} takes {needed:g} GPU at least, and this machine has {gpus}; set hardware to auto, "
            "or deploy to a cluster that has them."
        )


def logs_folder() -> Path:
    """Return the folder of the running node's logs."""
    import ray

    return Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"


def _shut_down() -> None:
    import ray
    from ray import serve

    if ray.is_initialized():
        try:
            serve.shutdown()
        except Exception as error:  # a half-started Serve must not keep the rest from ending
            logger.warning("Serve did not shut down: %s", error)
        ray.shutdown()


def _end(processes: list[psutil.Process]) -> None:
    """End what Ray left behind, by process id: HAProxy outlives the actor that started it."""
    _, alive = psutil.wait_procs(processes, timeout=1.0)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(alive, timeout=END_TIMEOUT_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
