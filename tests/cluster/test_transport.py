"""Micro-batches between two Ray nodes: large ones by reference, small ones by value, none lost."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster

from serve_app.graph.calls import InnerCalls
from serve_app.processes.private_ray import private_environment, private_folder
from serve_app.siglip.inputs import ImageBatch

MIB = 2**20
STORE_BYTES = 100 * MIB
FAR = "far"
"""Resource of the node that the receiver runs on."""


@dataclass(frozen=True)
class Received:
    """What a receiver saw of a batch.

    Attributes:
        node: Its node.
        is_mapped: Whether the pixels are read-only memory of the object store.
        total: Sum of all pixels.
        echo: The first bytes of the pixels, as many as the caller wanted.
    """

    node: str
    is_mapped: bool
    total: int
    echo: "np.ndarray[Any, Any]"


class Receiver:
    """Reads what it gets, as an encoder does."""

    async def take(self, batch: ImageBatch, echo_bytes: int = 0, pause_s: float = 0.0) -> Received:
        await asyncio.sleep(pause_s)
        pixels = batch.pixel_values
        return Received(
            ray.get_runtime_context().get_node_id(),
            not pixels.flags.writeable,
            int(pixels.sum(dtype=np.int64)),
            pixels.reshape(-1)[:echo_bytes].copy(),
        )


@pytest.fixture(scope="module")
def receiver() -> Iterator[Any]:
    """A receiver on one node; this process is a driver on the other."""
    node = {"object_store_memory": STORE_BYTES, "num_cpus": 2}
    with private_folder() as folder, private_environment(folder):
        cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        try:
            cluster.add_node(**node, resources={FAR: 1})
            ray.init(address=cluster.address, log_to_driver=False, namespace="serve")
            serve.start(proxy_location="Disabled")
            options = {"num_cpus": 0.5, "resources": {FAR: 0.1}}
            app = serve.deployment(ray_actor_options=options)(Receiver).bind()
            yield serve.run(app, name="transport", route_prefix=None)
        finally:
            if ray.is_initialized():
                serve.shutdown()
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture
async def calls(receiver: Any) -> InnerCalls:
    return InnerCalls(receiver, timeout_s=60.0, by_reference_bytes=2 * MIB)


def batch_of(nbytes: int, value: int = 1) -> ImageBatch:
    """Return a batch of images of 1 MiB each."""
    return ImageBatch(np.full((max(1, nbytes // MIB), MIB // 3 // 256, 256, 3), value, np.uint8))


async def used_bytes() -> dict[str, float]:
    """Return the bytes in use in each node's store once they no longer change."""
    used: dict[str, float] = {}
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        before = used
        used = {
            node: STORE_BYTES - left.get("object_store_memory", 0.0)
            for node, left in ray.state.available_resources_per_node().items()
        }
        if used == before and max(used.values()) < MIB:
            break
        await asyncio.sleep(1.0)
    return used


@pytest.mark.parametrize(("mib", "is_mapped"), [(1, False), (8, True), (32, True)])
async def test_the_size_decides_how_a_batch_is_sent(
    calls: InnerCalls, mib: int, is_mapped: bool
) -> None:
    """A large batch is read on the other node from shared memory, a small one from a message."""
    batch = batch_of(mib * MIB)
    received = await calls("take", batch, nbytes=batch.nbytes)
    assert received.node != ray.get_runtime_context().get_node_id()
    assert received.total == batch.pixel_values.sum(dtype=np.int64)
    assert received.is_mapped is is_mapped


async def test_a_large_reply_arrives(calls: InnerCalls) -> None:
    """A reply to a call by reference may be larger than what Ray sends within its own message."""
    batch = batch_of(8 * MIB, 7)
    received = await calls("take", batch, 3 * MIB, nbytes=batch.nbytes)
    assert received.echo.nbytes == 3 * MIB
    assert (received.echo == 7).all()


async def test_batches_of_ended_and_of_cancelled_calls_leave_the_store(calls: InnerCalls) -> None:
    """Five times the store's size passes through it, with a third of the calls cancelled."""
    batch = batch_of(8 * MIB)
    ended = 0
    for _ in range(16):
        running = [
            asyncio.create_task(calls("take", batch, 0, 0.02 * i, nbytes=batch.nbytes))
            for i in range(4)
        ]
        await asyncio.sleep(0.03)
        running[-1].cancel()
        results = await asyncio.gather(*running, return_exceptions=True)
        ended += sum(isinstance(result, Received) for result in results)
    assert ended == 16 * 3
    assert max((await used_bytes()).values()) < MIB


async def test_a_full_store_loses_nothing(calls: InnerCalls) -> None:
    """Objects that others hold fill the store of the caller's node: the batch still arrives."""
    held = [ray.put(np.zeros(20 * MIB, np.uint8)) for _ in range(4)]
    batch = batch_of(32 * MIB)
    received = await calls("take", batch, nbytes=batch.nbytes)
    assert received.total == batch.pixel_values.sum(dtype=np.int64)
    del held
