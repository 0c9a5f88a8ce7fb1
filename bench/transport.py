"""Micro-batches of pixels from one deployment to another: by value and by reference.

`python -m bench.transport` sends batches of several sizes in both ways, a few calls at a time, and
prints the images per second and the CPU milliseconds an image of the sender, of the receiver and of
the raylet. Both ways take turns for every size. The receiver copies the pixels once, as into the
pinned memory from which a GPU reads them. `serving.by_reference_bytes` follows from the table.
"""

import argparse
import asyncio
import math
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from serve_app.graph.calls import InnerCalls
from serve_app.graph.profiles import node_environment
from serve_app.processes.private_ray import private_folder, private_ray
from serve_app.siglip.inputs import ImageBatch

SHAPES = ((8, 64), (8, 224), (16, 224), (32, 224), (64, 224), (4, 384), (16, 384), (64, 384))
"""Images of a batch, and the side of an image in pixels."""
CALLS_AT_ONCE = 3
TRANSPORTS = {"value": math.inf, "reference": 0}


class Receiver:
    """Copies the pixels, and returns embeddings of so400m's width."""

    def __init__(self) -> None:
        self._pinned = np.empty(0, np.uint8)

    async def take(self, batch: ImageBatch) -> "np.ndarray[Any, Any]":
        if self._pinned.nbytes < batch.nbytes:
            self._pinned = np.empty(batch.nbytes, np.uint8)
        self._pinned[: batch.nbytes] = batch.pixel_values.reshape(-1)
        return np.zeros((len(batch), 1152), np.float32)

    async def pid(self) -> int:
        return os.getpid()


@dataclass(frozen=True)
class Measured:
    """Images per second, and CPU milliseconds an image by process."""

    rate: float
    cpu_ms: dict[str, float]


async def send(calls: InnerCalls, batch: ImageBatch, seconds: float) -> int:
    """Send a batch again and again for some seconds, and return the number of images."""
    deadline_s = time.perf_counter() + seconds
    sent = 0

    async def one_after_another() -> None:
        nonlocal sent
        while time.perf_counter() < deadline_s:
            await calls("take", batch, nbytes=batch.nbytes)
            sent += len(batch)

    await asyncio.gather(*[one_after_another() for _ in range(CALLS_AT_ONCE)])
    return sent


def cpu_seconds(pids: dict[str, int]) -> dict[str, float]:
    """Return the CPU seconds of some processes so far."""
    times = {name: psutil.Process(pid).cpu_times() for name, pid in pids.items()}
    return {name: cpu.user + cpu.system for name, cpu in times.items()}


async def measure(
    calls: InnerCalls, batch: ImageBatch, seconds: float, pids: dict[str, int]
) -> Measured:
    """Send a batch for some seconds after a warm-up."""
    await send(calls, batch, min(1.0, seconds))
    before = cpu_seconds(pids)
    started_s = time.perf_counter()
    images = await send(calls, batch, seconds)
    elapsed_s = time.perf_counter() - started_s
    after = cpu_seconds(pids)
    cpu_ms = {name: (after[name] - before[name]) * 1000 / images for name in pids}
    return Measured(images / elapsed_s, cpu_ms)


async def compare(handle: Any, seconds: float, rounds: int) -> None:
    """Print a row for every shape, with the best round of each transport."""
    receiver_pid = await handle.pid.remote()
    raylet = next(p for p in psutil.Process().children(recursive=True) if p.name() == "raylet")
    pids = {"sender": os.getpid(), "receiver": receiver_pid, "raylet": raylet.pid}
    calls = {
        name: InnerCalls(handle, 60.0, by_reference_bytes=limit)
        for name, limit in TRANSPORTS.items()
    }
    print("| batch | MiB | by | images/s | CPU ms an image: sender | receiver | raylet | all |")
    print("|---" * 8 + "|")
    for images, side in SHAPES:
        batch = ImageBatch(
            np.random.default_rng(0).integers(0, 256, (images, side, side, 3), np.uint8)
        )
        found: dict[str, list[Measured]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                found[name].append(await measure(call, batch, seconds, pids))
        for name, measured in found.items():
            best = min(measured, key=lambda one: sum(one.cpu_ms.values()))
            cells = [f"{images} × {side} px", f"{batch.nbytes / 2**20:.1f}", name]
            cells += [f"{best.rate:,.0f}", *(f"{ms:.3f}" for ms in best.cpu_ms.values())]
            print(f"| {' | '.join([*cells, f'{sum(best.cpu_ms.values()):.3f}'])} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with private_folder() as folder, private_ray(folder, node_environment("python"), num_cpus=2):
        # Ray reads the environment above when it is imported
        from ray import cloudpickle, serve

        import bench.transport as module

        cloudpickle.register_pickle_by_value(module)
        serve.start(proxy_location="Disabled")
        app = serve.deployment(ray_actor_options={"num_cpus": 1})(module.Receiver).bind()
        handle = serve.run(app, name="transport", route_prefix=None)
        asyncio.run(compare(handle, args.seconds, args.rounds))
        serve.shutdown()


if __name__ == "__main__":
    main()
