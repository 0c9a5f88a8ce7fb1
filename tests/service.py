"""The service as its user starts it, in a process of its own, for tests and benchmarks."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from serve_app.cli import main
from serve_app.processes.private_ray import token_for

COMMAND = str(Path(sys.executable).with_name("siglip-serve"))
START_TIMEOUT_S = 400.0
"""Twenty times what a start takes on two quiet cores: other tests run at the same time."""
METRIC_DELAY_S = 12.0
READY = re.compile(r"Ready: (?P<url>\S+) .*cluster (?P<cluster>[^)]+)\)")


def free_port() -> int:
    """Return a port that nothing listens on right now.

    It is below the ports that siglip-serve and Ray choose themselves and those of outgoing
    connections, so that it is still free when a slow process comes to listen on it.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 20_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port


class Service:
    """`siglip-serve serve CONFIG` with a configuration that tests may change and deploy again.

    Args:
        config: The configuration; a free port is chosen if it names none.
        folder: Where the configuration is written.
        options: Of `subprocess.Popen`, and `prefix`: a command that runs the command.
    """

    def __init__(self, config: dict[str, Any], folder: Path | None = None, **options: Any) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="siglip-"))
        self.config = config | {"serving": {"port": free_port()} | config.get("serving", {})}
        self.path = self.write(self.config)
        self.lines: list[str] = []
        command = [*options.pop("prefix", ()), COMMAND, "serve", str(self.path)]
        options = {"env": os.environ} | options
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
        )
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def write(self, config: dict[str, Any]) -> Path:
        """Write a configuration file and return its path."""
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if READY.search(line):
                self._ready.set()
        self._ready.set()

    def wait_until_ready(self) -> "Service":
        """Wait for the line that says where the service is."""
        assert self._ready.wait(START_TIMEOUT_S), "\n".join(self.lines)
        found = next((m for line in self.lines if (m := READY.search(line))), None)
        assert found is not None, "\n".join(self.lines)
        self.url = found["url"]
        self.cluster = found["cluster"]
        return self

    def deploy(self, config: dict[str, Any]) -> None:
        """Apply another configuration to the running service by `siglip-serve deploy`, in this
        process.
        """
        path = self.write(
            config
            | {"serving": config.get("serving", {}) | {"port": self.config["serving"]["port"]}}
        )
        deploy = ["deploy", str(path), "--address", self.cluster, "--timeout", str(START_TIMEOUT_S)]
        assert main(deploy) == 0

    def output(self) -> str:
        """Wait for the end of the service and return everything that it printed."""
        self.process.wait(START_TIMEOUT_S)
        self._reader.join()
        return "\n".join(self.lines)

    def children(self) -> list[psutil.Process]:
        """Return every process below the service."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Return the processes of a deployment's replicas."""
        return [
            p
            for p in self.children()
            if _title(p).startswith("ray::ServeReplica") and f":{deployment}" in _title(p)
        ]

    @property
    def token(self) -> str:
        """The token of the service's Ray, as another command of the same user finds it."""
        token = token_for(self.cluster)
        assert token is not None
        return token

    def ask(self, path: str, method: str = "GET", **content: Any) -> httpx.Response:
        """Ask the dashboard of the service's Ray, with its token."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.request(
            method, f"{self.cluster}{path}", headers=headers, timeout=60, **content
        )

    def replica_ids(self) -> dict[str, list[str]]:
        """Return the ids of the running replicas of each deployment, as Serve lists them."""
        details = self.ask("/api/serve/applications/").json()
        (application,) = details["applications"].values()
        return {
            name: sorted(r["replica_id"] for r in d["replicas"] if r["state"] == "RUNNING")
            for name, d in application["deployments"].items()
        }

    def metrics(self) -> dict[str, float]:
        """Return our metrics as Ray exports them to Prometheus, summed over labels."""
        targets = [t for group in self.ask("/api/prometheus/sd").json() for t in group["targets"]]
        found: dict[str, float] = {}
        for target in targets:
            for line in httpx.get(f"http://{target}/metrics").text.splitlines():
                if line.startswith("ray_siglip_"):
                    name = line.partition("{")[0].split(" ")[0]
                    value = float(line.rsplit(" ", 1)[1])
                    found[name] = found.get(name, 0.0) + value
        return found

    def settled_metric(self, name: str) -> float:
        """Return a metric once it has stayed the same for longer than it takes from a replica to
        the exporter.
        """
        value = self.metrics().get(name, 0.0)
        since = time.monotonic()
        while time.monotonic() - since < METRIC_DELAY_S:
            time.sleep(1)
            now = self.metrics().get(name, 0.0)
            if now != value:
                value = now
                since = time.monotonic()
        return value

    def stop(self, number: int = signal.SIGINT) -> int:
        """End the service as Ctrl-C does and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(START_TIMEOUT_S)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def wait_for(condition: Any, timeout_s: float = 180.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.25)
    raise AssertionError(f"not within {timeout_s} s: {json.dumps(str(condition))}")
