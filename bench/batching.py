"""The batching trial: an encoder that takes 50 ms for any batch of up to 32, 64 clients, the real
graph around it.

An ideal late-binding queue answers 64 clients at 32 / 50 ms = 640 a second. The same trial with an
encoder five times as slow says what the arrangement does where the CPU of the HTTP face is not what
ends first. `python -m bench.run batching`.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
    """Return the requests a second of a late-binding queue in one event loop, without a network or
    a graph.
    """
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

    Runs in a process of its own.
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
    """Print the real graph's rate beside the ideal queue's."""
    from bench.run import draw_pictures, write_config

    ideal = asyncio.run(ideal_queue(seconds, batch_s))
    with tempfile.TemporaryDirectory(prefix="siglip-trial-") as name:
        folder = Path(name)
        config = write_config(folder, "trial", "demo", 1, BATCH_SIZE)
        config.write_text(config.read_text().replace("port: 8123", f"port: {PORT}"))
        pictures = small_pictures(folder, draw_pictures(folder)[:8])
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.batching", str(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {BATCH_S_VARIABLE: str(batch_s)},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        command = [
            sys.executable,
            "-m",
            "bench.load",
            f"http://127.0.0.1:{PORT}/v1/tag",
            *pictures,
            "--clients",
            str(CLIENTS),
        ]
        measured: dict[str, Any] = {}
        for duration in (3.0, seconds):
            before = _counted(process)
            ran = subprocess.run(
                [*command, "--seconds", str(duration)], check=True, capture_output=True, text=True
            )
            measured = json.loads(ran.stdout)
            after = _counted(process)
        process.stdin.close()
        process.wait(timeout=60)
    batches = after["batches"] - before["batches"]
    rate = measured["per_second"]
    print(
        f"\n### batching trial: {batch_s * 1000:.0f} ms a batch of up to {BATCH_SIZE}, {CLIENTS} clients\n"
    )
    print(
        f"ideal late-binding queue {ideal:.0f}/s; real graph over HTTP {rate:.0f}/s = {rate / ideal:.2f}; ",
        end="",
    )
    print(
        f"p50 {measured['p50_ms']:.0f} ms, p99 {measured['p99_ms']:.0f} ms, {measured['failed']} failed"
    )
    print(
        f"mean batch {(after['items'] - before['items']) / batches:.1f}, encoder busy {batches * batch_s / seconds:.2f} of the time"
    )


def _counted(process: "subprocess.Popen[str]") -> dict[str, int]:
    """Return the batches and images that the encoder has counted so far."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("count\n")
    process.stdin.flush()
    return dict(json.loads(process.stdout.readline()))


def small_pictures(folder: Path, pictures: list[str]) -> list[str]:
    """Return 64×64 copies: the trial is about batching, and two cores must not be spent on
    decoding.
    """
    from PIL import Image

    paths = []
    for path in pictures:
        small = folder / f"small-{Path(path).name}"
        Image.open(path).resize((64, 64)).save(small, quality=90)
        paths.append(str(small))
    return paths


if __name__ == "__main__":
    serve_stand_in(sys.argv[1])
