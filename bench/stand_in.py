"""The real graph around an encoder that only takes its time, in a process of its own.

`StandIn` is the ImageEncoder deployment with a tower that sleeps, as a CPU does while a GPU
computes. Everything else is the service: ingress, decoding, transport, scoring.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from serve_app.graph.encoders import EncoderSpec, ImageEncoder
from serve_app.graph.forward_passes import ForwardPasses
from serve_app.siglip.inputs import FloatArray, ImageBatch, Uint8Array

PACE_VARIABLE = "SIGLIP_BENCH_PACE"


@dataclass(frozen=True)
class Pace:
    """Duration of a forward pass.

    Attributes:
        batch_s: Seconds of a full batch.
        batch_size: Images of a full batch.
        min_share: A smaller batch takes its share of `batch_s`, and at least this share.
    """

    batch_s: float
    batch_size: int
    min_share: float = 1.0

    def seconds(self, images: int) -> float:
        """Return the seconds of a batch of some images."""
        return self.batch_s * max(self.min_share, images / self.batch_size)


class StandIn(ImageEncoder):
    """The ImageEncoder deployment with a tower that only takes its time."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        pace = Pace(**json.loads(os.environ[PACE_VARIABLE]))
        width = self._tower.checkpoint.embedding_width
        self._forward_passes = ForwardPasses(SleepingTower(pace, width), width, self._count)


class SleepingTower:
    """A tower on a pretended GPU, which computes one batch after the other."""

    is_asynchronous = True

    def __init__(self, pace: Pace, width: int) -> None:
        self._pace = pace
        self._width = width
        self._pinned = np.empty(0, np.uint8)
        self._free_s = 0.0

    def encode(self, batch: ImageBatch) -> FloatArray:
        return self.encode_later(batch)()

    def encode_later(self, batch: ImageBatch) -> Callable[[], FloatArray]:
        assert len(batch) <= self._pace.batch_size
        self._copy_to_pinned_memory(batch.pixel_values)
        ends_s = max(self._free_s, time.perf_counter()) + self._pace.seconds(len(batch))
        self._free_s = ends_s

        def fetch() -> FloatArray:
            time.sleep(max(0.0, ends_s - time.perf_counter()))
            return np.full((len(batch), self._width), self._width**-0.5, np.float32)

        return fetch

    def _copy_to_pinned_memory(self, pixels: Uint8Array) -> None:
        """Copy the pixels once, as into the memory from which a GPU reads them."""
        if self._pinned.nbytes < pixels.nbytes:
            self._pinned = np.empty(pixels.nbytes, np.uint8)
        self._pinned[: pixels.nbytes] = pixels.reshape(-1)


@dataclass(frozen=True)
class Counts:
    """Batches and images that the stand-in has encoded so far."""

    batches: int
    items: int


class StandInGraph:
    """A running graph with a stand-in encoder."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """The process that started Ray and the graph; all others descend from it."""
        return self._process.pid

    def counts(self) -> Counts:
        """Ask the encoder what it has done so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("count\n")
        self._process.stdin.flush()
        return Counts(**json.loads(self._process.stdout.readline()))


@contextlib.contextmanager
def graph_with_stand_in(config: Path, pace: Pace) -> Iterator[StandInGraph]:
    """Run the graph of a configuration, with an encoder of this pace."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.stand_in", str(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {PACE_VARIABLE: json.dumps(asdict(pace))},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "ready"
        yield StandInGraph(process)
    finally:
        process.stdin.close()
        process.wait(timeout=60)


def serve_stand_in(config_path: Path) -> None:
    """Run the graph with the stand-in encoder until standard input ends.

    The imports are here because the module runs in two processes, and only this one needs Ray
    Serve. `StandIn` is pickled by value, because the replicas do not import `bench`.
    """
    from serve_app.config.service import load_config
    from serve_app.graph.local_node import local_node

    config = load_config(config_path)
    with local_node(config):
        from ray import cloudpickle, serve

        import bench.stand_in as module
        from serve_app.graph.builder import build_graph
        from serve_app.hardware.planning import hardware_here, plan_service

        cloudpickle.register_pickle_by_value(module)
        serve.start(http_options={"host": "127.0.0.1", "port": config.serving.port})
        plan = plan_service(config, hardware_here(config.hardware, config.siglip))
        graph = build_graph(config, plan, image_encoder=module.StandIn)
        serve.run(graph, name="trial", route_prefix="/")
        encoder = serve.get_deployment_handle("ImageEncoder", "trial")
        print("ready", flush=True)
        for _ in sys.stdin:
            state = encoder.state.remote().result()
            print(json.dumps(asdict(module.Counts(state.batches, state.items))), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=serve_stand_in.__doc__)
    parser.add_argument("config", type=Path, help="configuration of the service")
    serve_stand_in(parser.parse_args().config)
