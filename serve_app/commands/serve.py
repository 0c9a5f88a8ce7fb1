"""`siglip-serve serve`: a Ray node and the service on it, until Ctrl-C."""

import signal
import sys
import threading
from types import FrameType

from rich.console import Console

from serve_app.commands.follow import FollowedRequests
from serve_app.config import ServiceConfig
from serve_app.errors import TaggerError
from serve_app.graph.deploy import Cluster
from serve_app.graph.local_node import local_node, logs_folder
from serve_app.graph.profiles import ingress_profile
from serve_app.hardware.accelerators import GENERIC
from serve_app.hardware.detection import detect_machine

WATCH_S = 0.25


def serve_locally(config: ServiceConfig, timeout_s: float) -> int:
    """Start the service on this machine, say when it is ready, and end everything on SIGINT or SIGTERM.

    Raises:
        ConfigError: It cannot start.
    """
    from serve_app.graph.render import render_serve_config

    console = Console(stderr=True, highlight=False)
    config = _on_unknown_gpus(config)
    stop = threading.Event()
    _stop_on_signals(stop)
    with local_node(config) as cluster:
        _stop_on_signals(stop)  # again: ray.init takes SIGTERM for itself
        try:
            cluster.deploy(render_serve_config(config))
            with console.status(f"Loading {config.siglip.model} …") as status:
                cluster.wait_until_running(
                    config.name, timeout_s, lambda state: status.update(f"Loading {config.siglip.model} … {state}"), stop.is_set
                )
        except TaggerError:
            console.print(f"logs: {logs_folder()}")
            raise
        if not stop.is_set():
            print(_ready_line(config, cluster), flush=True)
        _wait(stop, FollowedRequests(logs_folder()))
        console.print("Ending …")
    return 0


def _on_unknown_gpus(config: ServiceConfig) -> ServiceConfig:
    """Name GPUs by their memory where only that is known: Ray would tell `build_app` a name that the planner does not know."""
    found = detect_machine()
    if config.hardware == "auto" and found.accelerator is not None and found.accelerator.name.startswith(GENERIC):
        return config.model_copy(update={"hardware": found.written})
    return config


def _ready_line(config: ServiceConfig, cluster: Cluster) -> str:
    shown_host = "127.0.0.1" if config.serving.host == "0.0.0.0" else config.serving.host
    pages = [name for name, there in (("page at /", config.access.page), ("docs at /docs", config.access.docs)) if there]
    return (
        f"Ready: http://{shown_host}:{config.serving.port} tags with {config.siglip.model} "
        f"({'; '.join([f'{ingress_profile(config.serving.ingress)} ingress', *pages])}; cluster {cluster.address}). Ctrl-C ends it."
    )


def _stop_on_signals(stop: threading.Event) -> None:
    def request_stop(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            sys.exit(130)  # asked twice: do not wait for a graceful end
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, request_stop)


def _wait(stop: threading.Event, requests: FollowedRequests) -> None:
    """Show the requests that are answered until the end is asked for."""
    while not stop.wait(WATCH_S):
        requests.show(lambda line: print(line, flush=True))
