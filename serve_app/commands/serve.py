"""`siglip-serve serve`: runs a Ray node with the service until Ctrl-C."""

import argparse
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from serve_app.commands.arguments import START_TIMEOUT_S
from serve_app.commands.follow import FollowedRequests
from serve_app.config.service import ServiceConfig, load_config
from serve_app.config.serving import Serving
from serve_app.errors import ConfigError, TaggerError
from serve_app.graph.deploy import Cluster
from serve_app.graph.haproxy import LOOPBACK
from serve_app.graph.local_node import LocalNode, listening_host, local_node, serve_config_here
from serve_app.graph.profiles import ingress_profile
from serve_app.hardware.accelerators import GENERIC
from serve_app.hardware.detection import detect_machine
from serve_app.processes.supervisor import supervised
from serve_app.terminal.console import SafeConsole, error_console, styled
from serve_app.terminal.printable import print_line
from serve_app.untrusted.problems import problem_sentence

POLL_INTERVAL_S = 0.25
"""Seconds between two looks at the request log."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `serve`."""
    parser.add_argument("config", type=Path)
    parser.add_argument(
        "--host",
        help="address to listen on, 0.0.0.0 for all; "
        "default: serving.host, or 127.0.0.1 if that is auto",
    )
    parser.add_argument("--port", type=int, help="port to listen on; default: serving.port")


def run(args: argparse.Namespace) -> int:
    """Serve a configuration.

    If `args.is_program` is set, it serves in a child process, so that no process of Ray is left
    behind.

    Raises:
        ConfigError: The configuration is not valid, or the service does not start.
    """
    return supervised(lambda: _serve(args)) if args.is_program else _serve(args)


def _serve(args: argparse.Namespace) -> int:
    config = listening_at(load_config(args.config), args.host, args.port)
    return serve_locally(config, START_TIMEOUT_S)


def serve_locally(config: ServiceConfig, timeout_s: float) -> int:
    """Start the service on this machine, report when it is ready, and stop it on a signal.

    SIGINT, SIGTERM and SIGHUP stop the service and its Ray node.

    Raises:
        ConfigError: The service cannot start.
    """
    console = error_console()
    config = _with_unknown_gpus(config)
    stop = threading.Event()
    _stop_on_signals(stop)
    with local_node(config) as node:
        _stop_on_signals(stop)  # again, because ray.init replaces the handler of SIGTERM
        if not stop.is_set():
            _deploy(config, node, timeout_s, console, stop)
        if not stop.is_set():
            print_line(_ready_message(config, node.cluster), flush=True)
            console.print(
                f"For ray and serve commands in another terminal: . {node.folder.environment_file}"
            )
        _wait(stop, FollowedRequests(node.logs))
        console.print("Stopping …")
    return 0


def _deploy(
    config: ServiceConfig,
    node: LocalNode,
    timeout_s: float,
    console: SafeConsole,
    stop: threading.Event,
) -> None:
    """Deploy the service, and wait until it runs or `stop` is set."""
    loading = f"Loading {config.siglip.model} …"
    try:
        node.cluster.deploy(serve_config_here(config))
        with console.status(styled(loading)) as status:
            node.cluster.wait_until_running(
                config.name,
                timeout_s,
                lambda state: status.update(styled(f"{loading} {state}")),
                stop.is_set,
            )
    except TaggerError:
        console.print(f"logs: {node.logs}")
        raise


def listening_at(config: ServiceConfig, host: str | None, port: int | None) -> ServiceConfig:
    """Return a configuration with the host and port of the command line, if they are set.

    Raises:
        ConfigError: The port is not valid.
    """
    options = {"host": host, "port": port}
    set_options = {name: value for name, value in options.items() if value is not None}
    try:
        serving = Serving.model_validate(config.serving.model_dump() | set_options)
    except ValidationError as error:
        raise ConfigError(problem_sentence(error.errors()[0], "--port")) from error
    return config.model_copy(update={"serving": serving})


def _with_unknown_gpus(config: ServiceConfig) -> ServiceConfig:
    """Return a configuration that names an unknown GPU by its memory.

    Otherwise Ray would report a name to `build_app` that the planner does not know.
    """
    if config.hardware != "auto":
        return config
    detected = detect_machine()
    if detected.accelerator is None or not detected.accelerator.name.startswith(GENERIC):
        return config
    return config.model_copy(update={"hardware": detected.written})


def _ready_message(config: ServiceConfig, cluster: Cluster) -> str:
    parts = [f"{ingress_profile(config.serving.ingress)} ingress"]
    if config.access.page:
        parts.append("page at /")
    if config.access.docs:
        parts.append("docs at /docs")
    parts.append(f"cluster {cluster.address}")
    return (
        f"Ready: http://{_shown_host(config)}:{config.serving.port} tags with "
        f"{config.siglip.model} ({'; '.join(parts)}). Press Ctrl-C to stop."
    )


def _shown_host(config: ServiceConfig) -> str:
    host = listening_host(config)
    if host in ("0.0.0.0", "::"):
        return LOOPBACK
    return f"[{host}]" if ":" in host else host


def _stop_on_signals(stop: threading.Event) -> None:
    interrupted = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if interrupted.is_set():
            sys.exit(130)  # after a second Ctrl-C, do not wait for a graceful stop
        interrupted.set()
        stop.set()

    def terminate(number: int, frame: FrameType | None) -> None:
        stop.set()

    # The supervisor sends SIGINT for every signal that it receives, and the kernel sends it if the
    # supervisor dies. SIGTERM arrives too if a container or a systemd unit stops all its processes.
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, terminate)


def _wait(stop: threading.Event, requests: FollowedRequests) -> None:
    """Print the request log until `stop` is set."""
    while not stop.wait(POLL_INTERVAL_S):
        requests.show(lambda line: print_line(line, flush=True))
