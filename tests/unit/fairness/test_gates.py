"""Heavy work goes through one gate, by turns."""

import asyncio

from serve_app.fairness.gates import FairGate
from serve_app.telemetry import record as observed
from serve_app.telemetry.record import RequestRecord


async def work(gate: FairGate, client: str, done: list[str], hold: asyncio.Event) -> None:
    observed.begin(RequestRecord(f"{client}-{id(hold)}", client=client))
    async with gate.turn():
        await hold.wait()
        done.append(client)


async def test_no_more_than_its_slots_run_at_once() -> None:
    """Of ten pieces of work two are inside, and all come through in the end."""
    gate = FairGate(2)
    inside = 0
    most = 0

    async def piece() -> None:
        nonlocal inside, most
        async with gate.turn():
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001)
            inside -= 1

    await asyncio.gather(*[piece() for _ in range(10)])
    assert most == 2


async def test_a_late_client_is_next() -> None:
    """Twenty of one wait; the first of another goes before nineteen of them."""
    gate = FairGate(1)
    hold = asyncio.Event()
    done: list[str] = []
    tasks = [asyncio.create_task(work(gate, "a", done, hold)) for _ in range(20)]
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(work(gate, "b", done, hold)))
    await asyncio.sleep(0)
    hold.set()
    await asyncio.gather(*tasks)
    assert done.index("b") <= 2


async def test_who_leaves_while_waiting_or_inside_takes_no_slot_along() -> None:
    """Cancelled work of both kinds, and one that was let through in the moment it was cancelled:
    the gate still opens.
    """
    gate = FairGate(1)
    hold = asyncio.Event()
    done: list[str] = []
    inside, waiting, chosen = [asyncio.create_task(work(gate, name, done, hold)) for name in "abc"]
    await asyncio.sleep(0.01)
    waiting.cancel()
    inside.cancel()
    await asyncio.wait([inside, waiting])
    chosen.cancel()  # it has the slot by now, or is about to
    await asyncio.wait([chosen])
    hold.set()
    await asyncio.wait_for(work(gate, "d", done, hold), timeout=1)
    assert done == ["d"]
