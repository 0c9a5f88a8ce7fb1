"""Workers, the driver and the whole cluster are killed at random points; at the end every input has
its row, once.
"""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from serve_app.demo import settings as demo_settings
from serve_app.processes.private_ray import private_environment, private_folder
from tests.batch import chaos_driver

INPUTS = 4000
KILLS = [
    "worker",
    "driver",
    "worker",
    "cluster",
    "worker",
    "driver",
    "worker",
    "cluster",
    "worker",
    "driver",
]
MOST_ENCODED_AGAIN = 0.05
STUCK_S = 600.0
ROOT = Path(__file__).parents[2]


class Chaos:
    """A cluster and a driver on it, either of which may be killed and started again."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.source = folder / "in"
        self.output = folder / "out"
        self.ledger = folder / "ledger"
        self.log = (folder / "driver.log").open("w")
        self.chance = chance
        self.killed = Counter[str]()
        self.cluster: Cluster | None = None
        self.driver: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start what is not there."""
        if self.cluster is None:
            os.environ[chaos_driver.LEDGER] = str(
                self.ledger
            )  # Ray's processes take the environment that they are started in
            self.cluster = Cluster(
                initialize_head=True,
                head_node_args={
                    "num_cpus": 2,
                    "include_dashboard": False,
                    "object_store_memory": 2**28,
                },
            )
        if self.driver is None:
            command = [
                sys.executable,
                "-m",
                "tests.batch.chaos_driver",
                str(self.source),
                str(self.output),
                self.cluster.address,
            ]
            self.driver = subprocess.Popen(command, cwd=ROOT, stdout=self.log, stderr=self.log)

    def kill(self, what: str) -> None:
        """Kill one worker in the middle of its work, the driver, or every process of the
        cluster.
        """
        self.killed[what] += 1
        if what == "worker":
            workers = [
                p
                for p in self.processes()
                if p.name().startswith(
                    ("ray::prepare", "ray::Encoder", "ray::Counting", "ray::finish")
                )
            ]
            if workers:
                self.chance.choice(workers).kill()
                self.killed[f"a {what} at work"] += 1
            return
        if what == "cluster":
            for process in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.end_cluster()
        self.end_driver()

    def processes(self) -> list[psutil.Process]:
        """Return every process of the cluster."""
        assert self.cluster is not None
        own = [
            info.process.pid
            for infos in self.cluster.head_node.all_processes.values()
            for info in infos
        ]
        found = []
        for pid in own:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                found += [process, *process.children(recursive=True)]
        return found

    def end_driver(self) -> None:
        if self.driver is not None:
            self.driver.kill()
            self.driver.wait()
            self.driver = None

    def end_cluster(self) -> None:
        if self.cluster is not None:
            self.cluster.shutdown()
            self.cluster = None

    def log_text(self) -> str:
        """Return the end of what the drivers said."""
        return Path(self.log.name).read_text()[-3000:]

    def has_written(self, chunks: int) -> bool:
        return self.written() >= chunks

    def written(self) -> int:
        """Return how many chunks have an output."""
        return len(list(self.output.glob("*/part-*.parquet")))


@pytest.fixture
def chaos(tmp_path: Path) -> Iterator[Chaos]:
    found = Chaos(tmp_path, random.Random(6))
    with (
        private_folder() as folder,
        private_environment(folder),
    ):  # which the cluster and every driver inherit
        try:
            yield found
        finally:
            found.end_driver()
            found.end_cluster()
            found.log.close()


def test_ten_kills_lose_nothing_and_double_nothing(chaos: Chaos) -> None:
    """Every input once, none twice, none missing, and images encoded more than once under 5 %."""
    samples = sorted((Path(demo_settings.__file__).parent / "samples").glob("*.jpg"))
    chaos.source.mkdir()
    for at in range(INPUTS):
        os.link(samples[at % len(samples)], chaos.source / f"{at:05d}.jpg")
    chunks = INPUTS // chaos_driver.CHUNK
    points = sorted(chaos.chance.sample(range(2, int(chunks * 0.95)), len(KILLS)))
    for point, what in zip(points, KILLS, strict=True):
        chaos.start()
        wait_until(partial(chaos.has_written, point), chaos)
        time.sleep(chaos.chance.random() * 0.2)
        chaos.kill(what)
    chaos.start()
    assert chaos.driver is not None
    assert chaos.driver.wait(STUCK_S) == 0, chaos.log_text()
    assert chaos.killed["a worker at work"] >= 3

    uris = Counter(
        uri
        for part in chaos.output.glob("*/part-*.parquet")
        for uri in pq.read_table(part)["uri"].to_pylist()
    )
    assert set(uris) == {str(path) for path in chaos.source.iterdir()}
    assert set(uris.values()) == {1}
    assert len(list(chaos.output.glob("*/_SUCCESS"))) == 1
    encoded = sum(int(line) for line in chaos.ledger.read_text().split())
    assert INPUTS <= encoded <= INPUTS * (1 + MOST_ENCODED_AGAIN), (
        f"{encoded} images were encoded for {INPUTS}"
    )


def wait_until(condition: Callable[[], bool], chaos: Chaos) -> None:
    """Wait, as long as the driver lives."""
    end_s = time.monotonic() + STUCK_S
    while not condition():
        assert chaos.driver is not None
        assert chaos.driver.poll() is None, f"the driver ended by itself:\n{chaos.log_text()}"
        assert time.monotonic() < end_s, f"stuck at {chaos.written()} chunks:\n{chaos.log_text()}"
        time.sleep(0.05)
