"""Two services on one machine, of one user or of two: a client of one never gets a response of the
other, and what is killed leaves nothing behind.
"""

import contextlib
import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from serve_app.api.keys import NewKey, make_key
from serve_app.demo import settings as demo_settings
from tests.cluster.conftest import demo_config
from tests.hostile.conftest import INGRESSES
from tests.process_trees import ProcessTree
from tests.service import Service, wait_for

IMAGE = (Path(demo_settings.__file__).parent / "samples" / "red-circle.jpg").read_bytes()
CASES = [
    (ingress, case)
    for ingress, case in (
        ("haproxy", "same user, supervisor"),
        ("haproxy", "another user, everything"),
        ("python", "another user, child"),
    )
    if ingress in INGRESSES
]
"""The ingress of both services, who starts the second one, and what of that is killed in the end.

Serve's own proxy is the same for one user.
"""
OTHER_UID = 65534
DEPLOYMENTS = ("preprocessor", "image_encoder", "text_encoder", "postprocessor")
CLIENTS = 4
ANSWERS_AFTERWARDS = 20
PAUSE_S = 0.02
"""Pause of each client between requests, which leaves CPU time for the processes that restart."""


class Load:
    """Clients of one service that count what they get: a label, or a status, or an error of the
    connection.
    """

    def __init__(self, service: Service, key: str) -> None:
        self.got: Counter[str] = Counter()
        self._url = f"{service.url}/v1/tag"
        self._headers = {"Authorization": f"Bearer {key}"}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        # every request opens a connection, which may reach the wrong service
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(headers=self._headers, timeout=30, limits=limits) as client:
            while not self._stop.wait(PAUSE_S):
                self._send(client)

    def _send(self, client: httpx.Client) -> None:
        try:
            response = client.post(self._url, content=IMAGE)
        except httpx.TransportError as error:
            self.got[type(error).__name__] += 1
            return
        if response.status_code == 200:
            self.got[response.json()["tags"][0]["label"]] += 1
        else:
            self.got[str(response.status_code)] += 1

    def wait_for_more(self, label: str) -> None:
        """Wait until the service has answered as it should a few more times."""
        enough = self.got[label] + ANSWERS_AFTERWARDS
        wait_for(lambda: self.got[label] >= enough)


@dataclass(frozen=True)
class Second:
    """A service beside `exposed`, a key of it, its processes, and what of them is to be killed."""

    service: Service
    key: str
    tree: ProcessTree
    killed: str


@pytest.fixture(scope="module")
def second(
    request: pytest.FixtureRequest, exposed: Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Second]:
    """A service that has other keys than `exposed`, knows one other label, and has few CPUs, so
    that two of them fit the machine.
    """
    user, killed = request.param.split(", ")
    key = make_key("somebody")
    folder = tmp_path_factory.mktemp("second")
    (folder / "keys").write_text(f"{key.line}\n")
    options = as_another_user(folder) if user == "another user" else {}
    config = demo_config() | {
        "labels": ["red circle"],
        "access": {"api_keys": str(folder / "keys")},
        "serving": {name: {"num_cpus": 0.25, "num_replicas": 1} for name in DEPLOYMENTS}
        | {"ingress": exposed.config["serving"]["ingress"]},
    }
    service = Service(config, folder, **options)
    tree = ProcessTree(service.process.pid)
    try:
        service.wait_until_ready()
        assert tree.root.uids().effective == (OTHER_UID if options else os.getuid())
        yield Second(service, key.key, tree, killed)
    finally:
        tree.kill()


def as_another_user(folder: Path) -> dict[str, object]:
    """Return options that start a service as a user who may read everything, the interpreter too,
    and write nothing of root's.
    """
    setpriv = shutil.which("setpriv")
    if os.getuid() != 0 or setpriv is None:
        pytest.skip("only root can start a process of another user")
    read_all = "+dac_read_search"
    prefix = [setpriv, f"--reuid={OTHER_UID}", f"--regid={OTHER_UID}", "--clear-groups"]
    prefix += [f"--inh-caps={read_all}", f"--ambient-caps={read_all}"]
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"this machine does not let root become another user: {tried.stderr}")
    folder.chmod(0o755)
    shutil.chown(folder, OTHER_UID, OTHER_UID)
    return {"prefix": prefix, "env": os.environ | {"HOME": str(folder)}}


def ingress_replicas(service: Service) -> list[psutil.Process]:
    """Return the replicas that requests come to."""
    return service.replicas("Preprocessor")


def listeners(service: Service) -> list[psutil.Process]:
    """Return what listens at the service's port: HAProxy, or Serve's proxy."""
    found = []
    for process in service.children():
        with contextlib.suppress(psutil.Error):
            sockets = process.net_connections(kind="tcp")
            ports = {s.laddr.port for s in sockets if s.status == psutil.CONN_LISTEN}
            if service.config["serving"]["port"] in ports:
                found.append(process)
    return found


def kill(find: Callable[[Service], list[psutil.Process]], service: Service) -> None:
    """Kill what is found; HAProxy may be replaced by another process meanwhile."""
    killed = 0
    while not killed:
        for process in find(service):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                killed += 1


@pytest.mark.parametrize(("exposed", "second"), CASES, indirect=True)
def test_killed_ingresses_send_nobody_to_the_other_service(
    exposed: Service, second: Second, keys: dict[str, NewKey]
) -> None:
    """Clients of each get its own label or an error, never a tag of the other or its 401."""
    with Load(exposed, keys["good"].key) as at_first, Load(second.service, second.key) as at_other:
        loads = ((exposed, at_first, "circle"), (second.service, at_other, "red circle"))
        for _, load, label in loads:
            load.wait_for_more(label)
        for service, load, label in loads:
            for find in (ingress_replicas, listeners):
                kill(find, service)
                load.wait_for_more(label)
    for load, wrong in ((at_first, "red circle"), (at_other, "circle")):
        assert not load.got.keys() & {wrong, "401"}, (at_first.got, at_other.got)


@pytest.mark.parametrize(("exposed", "second"), CASES, indirect=True)
def test_whatever_is_killed_nothing_is_left(second: Second) -> None:
    """SIGTERM to every process at once, as systemd sends it to those of a unit, and SIGKILL to
    either of our own two.
    """
    tree = second.tree
    alive = tree.look()
    assert len(alive) > 10
    if second.killed == "everything":
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
    elif second.killed == "supervisor":
        tree.root.kill()
    else:
        tree.root.children()[0].kill()
    tree.assert_all_end()
