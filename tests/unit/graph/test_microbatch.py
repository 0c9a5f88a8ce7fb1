"""The micro-batcher on an event loop: what leaves when, and that nothing is lost."""

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar

import pytest

from serve_app.errors import InvalidImage, Overloaded
from serve_app.graph.microbatch import BatchLimits, MicroBatcher

LIMITS = BatchLimits(max_batch_size=4, max_batch_bytes=1_000, max_waiting_bytes=100_000)


class Receiver:
    """A batch function whose calls end when the test says so."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gates: list[asyncio.Event] = []

    async def __call__(self, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        gate = asyncio.Event()
        self.gates.append(gate)
        await gate.wait()
        return [InvalidImage("bad") if item < 0 else item * 10 for item in items]

    async def release(self, call: int) -> None:
        self.gates[call].set()
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def submit(
    batcher: "MicroBatcher[int, int]", items: Sequence[int], nbytes: int = 1
) -> list["asyncio.Task[int]"]:
    return [asyncio.create_task(batcher.submit(item, nbytes)) for item in items]


async def test_an_idle_receiver_is_given_what_there_is() -> None:
    """Without a wait the first item leaves at once; what comes while it is under way gathers."""
    receiver = Receiver()
    batcher = MicroBatcher[int, int](receiver, LIMITS, wait_s=0)
    tasks = submit(batcher, [1, 2, 3])
    await settle()
    assert receiver.batches == [[1]]
    await receiver.release(0)
    assert receiver.batches == [[1], [2, 3]]
    await receiver.release(1)
    assert await asyncio.gather(*tasks) == [10, 20, 30]


async def test_one_full_batch_queues_behind_the_running_one_and_no_more() -> None:
    """While one call runs a full one may follow it; the rest gathers and a partial one waits."""
    receiver = Receiver()
    batcher = MicroBatcher[int, int](receiver, LIMITS, wait_s=0)
    tasks = submit(batcher, range(1, 12))
    await settle()
    assert receiver.batches == [[1], [2, 3, 4, 5]]
    assert batcher.waiting == 6
    await receiver.release(0)
    assert receiver.batches[2:] == [[6, 7, 8, 9]]
    await receiver.release(1)
    assert len(receiver.batches) == 3  # two are left: not full, and the receiver has work
    await receiver.release(2)
    assert receiver.batches[3:] == [[10, 11]]
    await receiver.release(3)
    assert await asyncio.gather(*tasks) == [item * 10 for item in range(1, 12)]


async def test_more_receivers_get_more_calls() -> None:
    """With two replicas to feed, two partial calls may be under way."""
    receiver = Receiver()
    batcher = MicroBatcher[int, int](receiver, LIMITS, wait_s=0)
    batcher.receivers = 2
    tasks = submit(batcher, [1, 2, 3])
    await settle()
    assert receiver.batches == [[1], [2]]
    for call in range(3):
        await receiver.release(call)
    await asyncio.gather(*tasks)


async def test_a_wait_lets_the_first_batch_gather() -> None:
    """With a wait, items that come within it share a call; a full one does not wait."""
    receiver = Receiver()
    batcher = MicroBatcher[int, int](receiver, LIMITS, wait_s=0.01)
    tasks = submit(batcher, [1, 2, 3])
    await settle()
    assert receiver.batches == []
    await asyncio.sleep(0.05)
    assert receiver.batches == [[1, 2, 3]]
    await receiver.release(0)
    tasks += submit(batcher, [4, 5, 6, 7])
    await settle()
    assert receiver.batches[1:] == [[4, 5, 6, 7]]
    await receiver.release(1)
    await asyncio.gather(*tasks)


async def test_batches_are_cut_by_bytes_and_a_large_item_goes_alone() -> None:
    """No call carries more than its bytes, but an item larger than that is still sent."""
    receiver = Receiver()
    batcher = MicroBatcher[int, int](receiver, LIMITS, wait_s=0)
    tasks = (
        submit(batcher, [1], nbytes=1)
        + submit(batcher, [2, 3, 4], nbytes=600)
        + submit(batcher, [5], nbytes=5_000)
    )
    for call in range(5):
        await settle()
        await receiver.release(call)
    assert receiver.batches == [[1], [2], [3], [4], [5]]
    await asyncio.gather(*tasks)


async def test_sizes_are_counted_and_not_items() -> None:
    """Micro-batches of 3, 1 and 2 images, four to a call: the first two go together, the third
    waits its turn.
    """
    receiver = Receiver()
    batcher = MicroBatcher[int, int](receiver, LIMITS, wait_s=0)
    tasks = [
        asyncio.create_task(batcher.submit(item, 1, size))
        for item, size in ((9, 4), (3, 3), (1, 1), (2, 2), (7, 9))
    ]
    for call in range(4):
        await settle()
        await receiver.release(call)
    assert receiver.batches == [[9], [3, 1], [2], [7]]
    await asyncio.gather(*tasks)


async def test_time_that_an_item_waited_counts() -> None:
    """What gathered while the receiver was busy leaves at once when it is free, however long the
    wait is set.
    """
    receiver = Receiver()
    batcher = MicroBatcher[int, int](receiver, LIMITS, wait_s=0.02)
    tasks = submit(batcher, [1])
    await asyncio.sleep(0.05)
    tasks += submit(batcher, [2, 3])
    await asyncio.sleep(0.05)
    assert receiver.batches == [[1]]
    await receiver.release(0)
    assert receiver.batches == [[1], [2, 3]]
    await receiver.release(1)
    await asyncio.gather(*tasks)


async def test_an_item_whose_caller_left_is_not_sent() -> None:
    """A request that was cancelled while it waited costs the model nothing."""
    receiver = Receiver()
    batcher = MicroBatcher[int, int](receiver, LIMITS, wait_s=0)
    first, left, stays = submit(batcher, [1, 2, 3])
    await settle()
    left.cancel()
    await receiver.release(0)
    assert receiver.batches == [[1], [3]]
    await receiver.release(1)
    assert await first == 10
    assert await stays == 30


async def test_an_exception_object_is_its_items_alone() -> None:
    """One outcome an item: the bad one raises, its neighbours have results."""
    receiver = Receiver()
    batcher = MicroBatcher[int, int](receiver, LIMITS, wait_s=0)
    tasks = submit(batcher, [1, 2, -1, 3])
    await settle()
    await receiver.release(0)
    await receiver.release(1)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [r for r in results if not isinstance(r, Exception)] == [10, 20, 30]
    assert isinstance(results[2], InvalidImage)


async def test_a_failing_call_fails_its_items_and_the_next_goes_on() -> None:
    """After a call that raised, the queue moves on."""
    fails = iter([True, False])

    async def run(items: Sequence[int]) -> list[int | Exception]:
        if next(fails):
            raise OSError("gone")
        return list(items)

    batcher = MicroBatcher[int, int](run, LIMITS, wait_s=0)
    first, second = submit(batcher, [1, 2])
    with pytest.raises(OSError, match="gone"):
        await first
    assert await second == 2


async def test_a_full_queue_refuses() -> None:
    """Beyond the bound an item is refused at once and those that wait are served."""
    receiver = Receiver()
    batcher = MicroBatcher[int, int](receiver, BatchLimits(4, 1_000, max_waiting_bytes=2), wait_s=0)
    tasks = submit(batcher, [1, 2, 3])
    await settle()
    with pytest.raises(Overloaded):
        await batcher.submit(4, 1)
    await receiver.release(0)
    await receiver.release(1)
    assert await asyncio.gather(*tasks) == [10, 20, 30]


async def test_closed_loop_fills_batches_as_an_ideal_queue_would() -> None:
    """Eight callers in a closed loop, batches of at most four: after the start every batch is full
    (design decision 1).
    """
    sizes: list[int] = []
    busy = asyncio.Lock()

    async def run(items: Sequence[int]) -> list[int | Exception]:
        async with busy:  # the model does one batch at a time
            sizes.append(len(items))
            await asyncio.sleep(0.005)
        return list(items)

    batcher = MicroBatcher[int, int](run, LIMITS, wait_s=0.001)

    async def caller(item: int) -> None:
        for _ in range(20):
            await batcher.submit(item, 1)

    await asyncio.gather(*[caller(item) for item in range(8)])
    assert sum(sizes) == 160
    assert sum(sizes) / len(sizes) > 3.5


async def test_a_partial_call_follows_shortly_before_the_running_one_ends() -> None:
    """With a lead, what gathered leaves at the expected end less the lead, though the running call
    is not back.
    """
    receiver = Receiver()
    batcher = MicroBatcher[int, int](receiver, LIMITS, wait_s=0, lead_s=0.05)
    tasks = submit(batcher, [1])
    await settle()
    await asyncio.sleep(0.2)
    await receiver.release(0)  # calls take 0.2 s
    tasks += submit(batcher, [2, 3, 4])
    await settle()
    assert receiver.batches == [[1], [2]]
    await asyncio.sleep(0.05)
    assert receiver.batches == [[1], [2]]  # 0.15 s of the turn are left
    await asyncio.sleep(0.2)
    assert receiver.batches == [[1], [2], [3, 4]]
    tasks += submit(batcher, [5])
    await asyncio.sleep(0.3)
    assert len(receiver.batches) == 3  # no third call, however late the two are
    for call in (1, 2, 3):
        await receiver.release(call)
    assert await asyncio.gather(*tasks) == [10, 20, 30, 40, 50]


async def test_a_call_belongs_to_no_request() -> None:
    """It is not made in the context of the request that happened to start it: Serve would cancel it
    with that one.
    """
    request: ContextVar[str] = ContextVar("request", default="nobody's")
    seen: list[str] = []

    async def run(items: Sequence[int]) -> list[int | Exception]:
        seen.append(request.get())
        await asyncio.sleep(0.005)
        return list(items)

    batcher = MicroBatcher[int, int](run, BatchLimits(4, 1000, 1000), wait_s=0.0)

    async def ask(number: int) -> int:
        request.set(f"of {number}")
        return await batcher.submit(number, 1)

    assert await asyncio.gather(*[ask(number) for number in range(20)]) == list(range(20))
    assert len(seen) >= 5
    assert set(seen) == {"nobody's"}
