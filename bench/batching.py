"""The batching trial: `python -m bench.run batching`.

The real graph serves 64 clients with an encoder that takes 50 ms for any batch of up to 32 images.
An ideal late-binding queue gives 64 clients 32 / 50 ms = 640 responses per second. The same trial
with an encoder five times as slow shows the graph where the CPU of the HTTP face is not the limit.
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bench.demo_inputs import draw_images, small_copies, write_config
from serve_app.graph.encoders import EncoderSpec, ImageEncoder
from serve_app.siglip.inputs import ImageBatch
from serve_app.siglip.outcomes import EncodedImages

BATCH_S = 0.050
SLOW_BATCH_S = 0.250
BATCH_SIZE = 32
CLIENTS = 64
BATCH_S_VARIABLE = "SIGLIP_TRIAL_BATCH_S"
PORT = 8124


class StandIn(ImageEncoder):
    """The ImageEncoder deployment with a forward pass that only takes its time."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        self._width = self._tower.checkpoint.embedding_width
        self._seconds = float(os.environ[BATCH_S_VARIABLE])

    def _forward(self, batches: Sequence[ImageBatch]) -> list[EncodedImages]:
        count = sum(len(batch) for batch in batches)
        assert count <= BATCH_SIZE
        time.sleep(self._seconds)
        self._count(count, self._seconds)
        embeds = np.full((count, self._width), self._width**-0.5, np.float32)
        ends = np.cumsum([len(batch) for batch in batches]).tolist()
        return [
            EncodedImages(embeds[e - len(b) : e], (None,) * len(b))
            for b, e in zip(batches, ends, strict=True)
        ]


async def ideal_queue(seconds: float, batch_s: float) -> float:
    """Return the requests per second of a late-binding queue, without a network or a graph."""
    waiting: list[asyncio.Future[None]] = []
    done = 0
    deadline = time.perf_counter() + seconds
    arrived = asyncio.Event()

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < deadline:
            future = asyncio.get_running_loop().create_future()
            waiting.append(future)
            arrived.set()
            await future
            done += 1

    async def server() -> None:
        while True:
            await arrived.wait()
            batch = waiting[:BATCH_SIZE]
            del waiting[:BATCH_SIZE]
            await asyncio.sleep(batch_s)
            for future in batch:
                future.set_result(None)
            await asyncio.sleep(0.001)
            if not waiting:
                arrived.clear()

    serving = asyncio.create_task(server())
    await asyncio.gather(*[client() for _ in range(CLIENTS)])
    serving.cancel()
    return done / seconds


def serve_stand_in(config_path: str) -> None:
    """Run the graph with the stand-in encoder until standard input ends.

    The imports are here because the module runs in two processes, and only this one needs Ray
    Serve. `StandIn` is pickled by value, because the replicas do not import `bench`.
    """
    from serve_app.config.service import load_config
    from serve_app.graph.local_node import local_node

    config = load_config(Path(config_path))
    with local_node(config):
        from ray import cloudpickle, serve

        import bench.batching as module
        from serve_app.graph.builder import build_graph
        from serve_app.hardware.planning import hardware_here, plan_service

        cloudpickle.register_pickle_by_value(module)
        serve.start(http_options={"host": "127.0.0.1", "port": config.serving.port})
        serve.run(
            build_graph(
                config,
                plan_service(config, hardware_here(config.hardware, config.siglip)),
                image_encoder=StandIn,
            ),
            name="trial",
            route_prefix="/",
        )
        encoder = serve.get_deployment_handle("ImageEncoder", "trial")
        print("ready", flush=True)
        for _ in sys.stdin:
            state = encoder.state.remote().result()
            print(json.dumps({"batches": state.batches, "items": state.items}), flush=True)


def batching_trial(seconds: float, batch_s: float) -> None:
    """Compare the rate of the real graph with that of the ideal queue, and print both."""
    ideal = asyncio.run(ideal_queue(seconds, batch_s))
    with tempfile.TemporaryDirectory(prefix="siglip-trial-") as name:
        folder = Path(name)
        config = write_config(folder / "trial.yaml", "demo", 1, BATCH_SIZE, PORT)
        images = small_copies(folder, draw_images(folder)[:8])
        with _graph_with_stand_in(config, batch_s) as graph:
            _load(images, 3.0)  # warm up
            before = _counted(graph)
            rate = _load(images, seconds)
            after = _counted(graph)
    batches = after["batches"] - before["batches"]
    mean_batch = (after["items"] - before["items"]) / batches
    print(
        f"\n### batching trial: {batch_s * 1000:.0f} ms a batch of up to {BATCH_SIZE}, "
        f"{CLIENTS} clients\n"
    )
    print(
        f"ideal late-binding queue {ideal:.0f}/s; "
        f"real graph over HTTP {rate:.0f}/s = {rate / ideal:.2f}; "
        f"mean batch {mean_batch:.1f}, "
        f"encoder busy {batches * batch_s / seconds:.2f} of the time"
    )


@contextlib.contextmanager
def _graph_with_stand_in(config: Path, batch_s: float) -> "Iterator[subprocess.Popen[str]]":
    """Run `serve_stand_in` in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.batching", str(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {BATCH_S_VARIABLE: str(batch_s)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "ready"
        yield process
    finally:
        process.stdin.close()
        process.wait(timeout=60)


def _load(images: list[str], seconds: float) -> float:
    """Run the load generator and return the responses per second."""
    url = f"http://127.0.0.1:{PORT}/v1/tag"
    command = [sys.executable, "-m", "bench.load", url, *images]
    command += ["--clients", str(CLIENTS), "--seconds", str(seconds)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(ran.stdout)["per_second"])


def _counted(process: "subprocess.Popen[str]") -> dict[str, int]:
    """Return the numbers of batches and images that the encoder has counted so far."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("count\n")
    process.stdin.flush()
    return dict(json.loads(process.stdout.readline()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=serve_stand_in.__doc__)
    parser.add_argument("config", help="configuration of the trial's service")
    serve_stand_in(parser.parse_args().config)
