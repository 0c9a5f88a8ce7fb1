"""Which images are decoded when: by turns, within a memory budget, and not at all once their
request has ended.
"""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from serve_app.errors import Overloaded
from serve_app.graph.decoding_threads import SECONDS_OF_COST, DecodingBudget, DecodingThreads
from serve_app.images.cost import DecodeCost
from serve_app.telemetry import record as observed
from serve_app.telemetry.record import RequestRecord, StageTimes

SMALL = DecodeCost(1.0, 10)
BUDGET = DecodingBudget(threads=2, cpus=1.0, max_bytes=100, max_waiting_s=60.0)


class Gate:
    """A `prepare` that notes what it is given and waits until it may go on."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.started: list[bytes] = []

    def __call__(self, data: bytes, times: StageTimes) -> bytes:
        self.started.append(data)
        assert self.open.wait(10)
        return data.upper()


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open.set()


def start(
    threads: DecodingThreads, gate: Gate, data: bytes, client: str, cost: DecodeCost = SMALL
) -> "asyncio.Task[bytes]":
    async def run() -> bytes:
        observed.begin(RequestRecord(f"{client}{data!r}", client=client))
        return await threads.run(gate, data, StageTimes(), cost)

    return asyncio.create_task(run())


async def until(condition: object, *, seconds: float = 5.0) -> None:
    for _ in range(int(seconds * 100)):
        if condition():  # type: ignore[operator]
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not in time")


async def test_a_late_client_is_next(gate: Gate) -> None:
    """With both threads busy and fifty of one client waiting, another client's image is the next to
    start or the one after.
    """
    threads = DecodingThreads(BUDGET)
    many = [start(threads, gate, b"many", "a") for _ in range(52)]
    await until(lambda: len(gate.started) == 2)
    late = start(threads, gate, b"late", "b")
    await asyncio.sleep(0)
    gate.open.set()
    assert await late == b"LATE"
    assert b"late" in gate.started[:5]
    assert await asyncio.gather(*many) == [b"MANY"] * 52
    assert threads.undecoded == 0


async def test_images_of_ended_requests_are_not_decoded(gate: Gate) -> None:
    """Those that wait when their request is cancelled never start, and what they held of the budget
    is free again.
    """
    threads = DecodingThreads(BUDGET)
    running = [start(threads, gate, b"running", "a") for _ in range(2)]
    waiting = [start(threads, gate, b"waiting", "a") for _ in range(20)]
    await until(lambda: len(gate.started) == 2)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    gate.open.set()
    await asyncio.gather(*running)
    assert await start(threads, gate, b"last", "a") == b"LAST"
    assert gate.started == [b"running", b"running", b"last"]
    assert threads._waiting.held == 0


async def test_a_running_image_holds_its_memory_until_its_thread_is_through(gate: Gate) -> None:
    """A cancelled request does not make room for a second large image while the first is still
    being decoded.
    """
    threads = DecodingThreads(BUDGET)
    large = DecodeCost(1.0, 90)
    first = start(threads, gate, b"first", "a", large)
    await until(lambda: gate.started)
    first.cancel()
    second = start(threads, gate, b"second", "a", large)
    await asyncio.sleep(0.05)
    assert gate.started == [b"first"]
    gate.open.set()
    assert await second == b"SECOND"


async def test_an_image_larger_than_the_budget_goes_alone(gate: Gate) -> None:
    """It is not stuck for ever, and nothing runs beside it."""
    threads = DecodingThreads(BUDGET)
    alone = start(threads, gate, b"huge", "a", DecodeCost(1.0, 1000))
    other = start(threads, gate, b"small", "b")
    await asyncio.sleep(0.05)
    assert gate.started == [b"huge"]
    gate.open.set()
    assert (await alone, await other) == (b"HUGE", b"SMALL")


async def test_more_than_can_be_decoded_in_time_is_refused(gate: Gate) -> None:
    """A client that fills the queue is refused; another one still has its share."""
    threads = DecodingThreads(DecodingBudget(2, 1.0, 100, max_waiting_s=100 * SECONDS_OF_COST))
    admitted = [start(threads, gate, b"x", "a") for _ in range(95)]
    await asyncio.sleep(0.05)
    refused = [task for task in admitted if task.done()]
    assert len(refused) == 95 - 87
    assert all(isinstance(task.exception(), Overloaded) for task in refused)
    other = start(threads, gate, b"other", "b")
    gate.open.set()
    assert await other == b"OTHER"
    await asyncio.gather(*admitted, return_exceptions=True)


async def test_a_second_decode_that_few_images_need_does_not_shorten_the_queue(gate: Gate) -> None:
    """Photos are decoded once, so as many of them may wait as if text were never decoded twice."""
    threads = DecodingThreads(DecodingBudget(2, 1.0, 100, max_waiting_s=100 * SECONDS_OF_COST))
    photo = DecodeCost(3.5, 10, second_decode=2.5)
    waiting = [start(threads, gate, b"x", "a", photo) for _ in range(80)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in waiting)
    gate.open.set()
    await asyncio.gather(*waiting)


async def test_nothing_starts_while_there_is_no_room_behind(gate: Gate) -> None:
    """Images wait undecoded, where turns are taken, until the encoder has taken what is decoded."""
    room = [False]
    threads = DecodingThreads(BUDGET, lambda: room[0])
    waiting = start(threads, gate, b"x", "a")
    await asyncio.sleep(0.05)
    assert not gate.started
    room[0] = True
    gate.open.set()
    threads.dispatch()
    assert await waiting == b"X"


async def test_errors_come_back(gate: Gate) -> None:
    """What `prepare` raises is raised to the caller, and the thread is free again."""
    threads = DecodingThreads(BUDGET)

    def fails(data: bytes, times: StageTimes) -> bytes:
        raise ValueError(data.decode())

    for _ in range(4):
        with pytest.raises(ValueError, match="broken"):
            await threads.run(fails, b"broken", StageTimes(), SMALL)
