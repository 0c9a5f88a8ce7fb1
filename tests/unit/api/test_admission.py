"""How many requests and bytes one process takes, from whom, and what a client that does not read
costs.
"""

import asyncio
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api import admission
from serve_app.api.admission import MAX_PACED_BYTES, Admission
from serve_app.api.edge import Edge
from serve_app.api.passages import CLIENT_LEFT, SMALL_WRITE_BYTES, AnsweredRequest, ClientTimes
from serve_app.config.limits import Limits
from serve_app.errors import Overloaded

TIMES = ClientTimes(body_s=1.0, write_s=0.1)


async def in_turn(
    app: ASGIApp, client: str, chunks: list[bytes], headers: dict[str, str] | None = None
) -> list[Message]:
    """Send a request to an application and return what it sends."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[Message] = []

    async def receive() -> Message:
        return (
            messages.pop(0) if messages else await asyncio.sleep(1000, {"type": "http.disconnect"})
        )

    async def send(message: Message) -> None:
        sent.append(message)

    own = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/tag",
        "headers": own,
        "client": (client, 1),
        "query_string": b"",
    }
    await app(scope, receive, send)
    return sent


def status(sent: list[Message]) -> int:
    (start,) = [message for message in sent if message["type"] == "http.response.start"]
    return int(start["status"])


async def read_all(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body and say how long it was."""
    size = 0
    while True:
        message = await receive()
        size += len(message["body"])
        if not message["more_body"]:
            break
    await PlainTextResponse(str(size))(scope, receive, send)


class Held:
    """An application whose requests stay until they may end."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.may_end.wait()
        await PlainTextResponse("done")(scope, receive, send)


def budgets(**given: Any) -> Admission:
    return Admission(Limits.model_construct(**(Limits().model_dump() | given)))


async def test_a_crowd_of_one_client_leaves_room_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 16 places one client gets 14; another one still gets in, and afterwards all is free
    again.
    """
    monkeypatch.setattr(admission, "PACE_S", 0.0)
    held = Held()
    edge = Edge(held, TIMES, budgets(max_concurrent_requests=16))
    crowd = [asyncio.create_task(in_turn(edge, "a", [])) for _ in range(40)]
    await asyncio.sleep(0.05)
    other = asyncio.create_task(in_turn(edge, "b", []))
    await asyncio.sleep(0.05)
    held.may_end.set()
    assert sorted(status(sent) for sent in await asyncio.gather(*crowd)) == [200] * 14 + [429] * 26
    assert status(await other) == 200
    assert edge.admission is not None
    assert edge.admission._requests.held == 0


async def test_refusals_of_small_requests_are_paced_and_large_ones_are_not() -> None:
    """A client that asks again at once waits a moment; a body that would be read meanwhile is
    refused at once.
    """
    held = Held()
    edge = Edge(held, TIMES, budgets(max_concurrent_requests=1))
    task = asyncio.create_task(in_turn(edge, "a", []))
    await asyncio.sleep(0.01)
    loop = asyncio.get_running_loop()

    async def refused(headers: dict[str, str]) -> float:
        started_s = loop.time()
        assert status(await in_turn(edge, "a", [], headers)) == 429
        return loop.time() - started_s

    assert await refused({"content-length": "10"}) >= admission.PACE_S * 0.9
    assert await refused({"content-length": str(MAX_PACED_BYTES + 1)}) < admission.PACE_S / 2
    assert await refused({"transfer-encoding": "chunked"}) < admission.PACE_S / 2
    held.may_end.set()
    await task


async def test_bodies_are_bounded_in_sum() -> None:
    """Each byte counts twice.

    What would be too much is refused: by its announced size, and without one while it is read.
    """
    edge = Edge(read_all, TIMES, budgets(max_held_bytes=8000))
    assert edge.admission is not None
    other = await edge.admission.enter("other", 0)
    other.hold(4000)
    assert status(await in_turn(edge, "a", [b"x" * 500] * 2)) == 200
    assert status(await in_turn(edge, "a", [b"x" * 500] * 9)) == 429
    sent = await in_turn(edge, "a", [], {"content-length": "1750"})
    assert status(sent) == 429
    other.leave()
    assert edge.admission.held_bytes == 0
    assert status(await in_turn(edge, "a", [b"x" * 500] * 6)) == 200
    assert edge.admission.held_bytes == 0


async def test_large_responses_that_nobody_reads_are_given_up() -> None:
    """After the time to write it is as if the client had left, its bytes are free again, and no
    error is logged as ours.
    """
    seen: list[AnsweredRequest] = []
    body = b"x" * (SMALL_WRITE_BYTES + 1)
    edge = Edge(PlainTextResponse(body.decode()), TIMES, budgets(), observers=(seen.append,))

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(1000)

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/score",
        "headers": [],
        "client": ("a", 1),
        "query_string": b"",
    }
    with pytest.raises(OSError, match="did not read"):
        await edge(scope, receive, send)
    assert seen[0].status == CLIENT_LEFT
    assert edge.admission is not None
    assert edge.admission.held_bytes == 0


async def test_a_large_response_without_room_is_refused_before_it_begins() -> None:
    """429 with a body of its own, whoever else holds the bytes."""
    edge = Edge(PlainTextResponse("x" * 90_000), TIMES, budgets(max_held_bytes=100_000))
    assert edge.admission is not None
    other = await edge.admission.enter("other", 0)
    other.hold(50_000)
    sent = await in_turn(edge, "a", [])
    assert status(sent) == 429
    assert b"overloaded" in sent[-1]["body"]
    other.leave()
    assert edge.admission.held_bytes == 0


async def test_probes_are_always_let_in() -> None:
    """A full service is not a dead one."""
    edge = Edge(PlainTextResponse("alive"), TIMES, budgets(max_concurrent_requests=1))
    assert edge.admission is not None
    await edge.admission.enter("a", 0)
    with pytest.raises(Overloaded):
        await edge.admission.enter("a", None)

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": "GET",
        "path": "/healthz",
        "headers": [],
        "client": ("a", 1),
        "query_string": b"",
    }
    await edge(scope, lambda: asyncio.sleep(0, {"type": "http.request"}), send)  # type: ignore[arg-type]
    assert status(sent) == 200


async def test_the_rest_of_a_refused_body_is_read_for_a_few_clients() -> None:
    """They get the response and keep their connection; that of a fifth, or of one who announces too
    much, is closed.
    """

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("no", 400)(scope, receive, send)

    edge = Edge(refuse, TIMES, budgets())
    assert edge.admission is not None
    chunks = [b"x" * 2**20] * 3
    announced = {"content-length": str(3 * 2**20)}

    def closes(sent: list[Message]) -> bool:
        return (b"connection", b"close") in sent[0]["headers"]

    assert not closes(await in_turn(edge, "a", chunks, announced))
    for _ in range(admission.MAX_DRAINED):
        assert edge.admission.take_drain()
    assert closes(await in_turn(edge, "a", chunks, announced))
    edge.admission.end_drain()
    assert not closes(await in_turn(edge, "a", chunks, announced))
    assert closes(await in_turn(edge, "a", chunks, {"content-length": str(2**40)}))
    assert closes(await in_turn(edge, "a", chunks, {"transfer-encoding": "chunked"}))


async def test_the_last_part_of_a_stream_has_a_time_too() -> None:
    """Writing it waits for the parts before it."""

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body" and not message["more_body"]:
            await asyncio.sleep(1000)

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/tag",
        "headers": [],
        "client": ("a", 1),
        "query_string": b"",
    }
    with pytest.raises(OSError, match="did not read"):
        await asyncio.wait_for(
            Edge(stream, TIMES, budgets())(scope, lambda: asyncio.sleep(0, {}), send), 5
        )  # type: ignore[arg-type]
