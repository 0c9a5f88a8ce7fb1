"""Forward passes on a device that computes by itself, one batch after the other, and on a CPU."""

import asyncio
import threading
from collections.abc import Callable

import numpy as np
import pytest

from serve_app.graph.forward_passes import MAX_STARTED, ForwardPasses
from serve_app.siglip.inputs import FloatArray, ImageBatch

WIDTH = 4
BROKEN = 255
"""Value of the pixels of an image that the tower cannot encode."""


class Device:
    """A tower on a device that ends a batch when `release` is called."""

    def __init__(self, *, is_asynchronous: bool = True, fails_when_started: bool = False) -> None:
        self.is_asynchronous = is_asynchronous
        self.fails_when_started = fails_when_started
        self.started: list[int] = []
        self.may_end = threading.Semaphore(0)

    def release(self, batches: int = 1) -> None:
        self.may_end.release(batches)

    def encode(self, batch: ImageBatch) -> FloatArray:
        if (batch.pixel_values == BROKEN).any():
            raise RuntimeError("CUDA error: device-side assert triggered")
        return batch.pixel_values.reshape(len(batch), -1)[:, :WIDTH].astype(np.float32)

    def encode_later(self, batch: ImageBatch) -> Callable[[], FloatArray]:
        self.started.append(len(batch))
        if self.fails_when_started:
            self.encode(batch)

        def fetch() -> FloatArray:
            self.may_end.acquire()
            return self.encode(batch)

        return fetch


def images(*values: int) -> ImageBatch:
    """Return a batch of one-coloured images."""
    return ImageBatch(np.stack([np.full((2, 2, 3), value, np.uint8) for value in values]))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - set in a thread
            await asyncio.sleep(0.01)


async def test_the_next_batch_is_started_while_the_device_computes() -> None:
    """Two batches are on the device and a third waits; each gets its own embeddings."""
    counted: list[int] = []
    device = Device()
    passes = ForwardPasses(device, WIDTH, lambda n, seconds, ok: counted.append(n))
    calls = [asyncio.create_task(passes.encode([images(n)])) for n in range(1, 4)]
    await until(lambda: len(device.started) == MAX_STARTED)
    await asyncio.sleep(0.1)
    assert len(device.started) == MAX_STARTED
    assert counted == []

    device.release()
    await until(lambda: len(device.started) == 3)
    device.release(2)
    encoded = await asyncio.gather(*calls)
    assert [one.image_embeds[0, 0] for one in encoded] == [1, 2, 3]
    assert counted == [1, 1, 1]


async def test_batches_are_encoded_as_one() -> None:
    """Several micro-batches are one forward pass."""
    device = Device()
    device.release()
    passes = ForwardPasses(device, WIDTH, lambda *_: None)
    encoded = await passes.encode([images(1, 2), images(3)])
    assert device.started == [3]
    assert encoded.image_embeds[:, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("fails_when_started", [True, False])
@pytest.mark.parametrize("is_asynchronous", [True, False])
async def test_an_error_of_the_device_is_the_error_of_one_image(
    is_asynchronous: bool, fails_when_started: bool
) -> None:
    """An error may come when a batch is started or when it is fetched."""
    succeeded: list[bool] = []
    device = Device(is_asynchronous=is_asynchronous, fails_when_started=fails_when_started)
    device.release()
    passes = ForwardPasses(device, WIDTH, lambda n, seconds, ok: succeeded.append(ok))
    encoded = await passes.encode([images(1, BROKEN, 3)])
    assert [error is None for error in encoded.errors] == [True, False, True]
    assert encoded.image_embeds[[0, 2], 0].tolist() == [1, 3]
    assert succeeded == [True]


async def test_waiting_for_another_batch_does_not_count() -> None:
    """The seconds of two batches that overlap sum up to the time that passed."""
    seconds: list[float] = []
    device = Device()
    passes = ForwardPasses(device, WIDTH, lambda n, s, ok: seconds.append(s))
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    calls = [asyncio.create_task(passes.encode([images(n)])) for n in (1, 2)]
    await until(lambda: len(device.started) == 2)
    await asyncio.sleep(0.2)
    device.release(2)
    await asyncio.gather(*calls)
    assert sum(seconds) <= loop.time() - began_s
