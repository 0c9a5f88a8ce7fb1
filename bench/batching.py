"""The batching trial: `python -m bench.run batching`.

The real graph serves 64 clients with an encoder that takes 50 ms for any batch of up to 32 images.
An ideal late-binding queue gives 64 clients 32 / 50 ms = 640 responses per second. The same trial
with an encoder five times as slow shows the graph where the CPU of the HTTP face is not the limit,
and one that takes 20 ms shows it at the pace of a GPU.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.demo_inputs import draw_images, small_copies, write_config
from bench.stand_in import Pace, graph_with_stand_in

FAST_BATCH_S = 0.020
BATCH_S = 0.050
SLOW_BATCH_S = 0.250
BATCH_SIZE = 32
CLIENTS = 64
PORT = 8124


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


def batching_trial(seconds: float, batch_s: float) -> None:
    """Compare the rate of the real graph with that of the ideal queue, and print both."""
    ideal = asyncio.run(ideal_queue(seconds, batch_s))
    with tempfile.TemporaryDirectory(prefix="siglip-trial-") as name:
        folder = Path(name)
        config = write_config(folder / "trial.yaml", "demo", 1, BATCH_SIZE, PORT)
        images = small_copies(folder, draw_images(folder)[:8])
        with graph_with_stand_in(config, Pace(batch_s, BATCH_SIZE)) as graph:
            _load(images, 3.0)  # warm up
            before = graph.counts()
            rate = _load(images, seconds)
            after = graph.counts()
    batches = after.batches - before.batches
    mean_batch = (after.items - before.items) / batches
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


def _load(images: list[str], seconds: float) -> float:
    """Run the load generator and return the responses per second."""
    url = f"http://127.0.0.1:{PORT}/v1/tag"
    command = [sys.executable, "-m", "bench.load", url, *images]
    command += ["--clients", str(CLIENTS), "--seconds", str(seconds)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(ran.stdout)["per_second"])
