"""How many requests and bytes one process takes, from whom, and what a client that does not read
costs.
"""

import asyncio
import math
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api import admission, unread_bodies
from serve_app.api.admission import MAX_PACED_BYTES, Admission
from serve_app.api.app import edge
from serve_app.api.application import wrapped
from serve_app.api.client_timeouts import SMALL_WRITE_BYTES
from serve_app.api.error_responses import error_response
from serve_app.api.recording import CLIENT_LEFT
from serve_app.api.routes import ApiRoute, RouteTable
from serve_app.config.limits import Limits
from serve_app.errors import Overloaded
from serve_app.telemetry.record import FinishedRequest, Observer

TIMES = {"body_timeout_s": 1.0, "write_timeout_s": 0.1}


async def unused(_: Request) -> Response:
    raise AssertionError


ROUTES = RouteTable([ApiRoute("/healthz", unused, "GET", is_open=True)])


def behind(app: ASGIApp, budgets: Admission, *observers: Observer) -> ASGIApp:
    """Return an application behind the middlewares that every request passes."""
    limits = Limits.model_construct(**(Limits().model_dump() | TIMES))
    return wrapped(app, edge(ROUTES, limits, admission=budgets, observers=observers))


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

    await app(request_scope(client, headers or {}), receive, send)
    return sent


def request_scope(client: str, headers: dict[str, str]) -> Scope:
    return {
        "type": "http",
        "method": "POST",
        "path": "/v1/tag",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": (client, 1),
        "query_string": b"",
    }


async def stall(app: ASGIApp, headers: dict[str, str]) -> None:
    """Announce a body and never send it."""
    scope = request_scope("a", headers)

    async def send(_: Message) -> None:
        raise AssertionError("answered before its body was drained")

    await app(scope, lambda: asyncio.sleep(1000, {}), send)  # type: ignore[arg-type]


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
    budget = budgets(max_concurrent_requests=16)
    app = behind(held, budget)
    crowd = [asyncio.create_task(in_turn(app, "a", [])) for _ in range(40)]
    await asyncio.sleep(0.05)
    other = asyncio.create_task(in_turn(app, "b", []))
    await asyncio.sleep(0.05)
    held.may_end.set()
    assert sorted(status(sent) for sent in await asyncio.gather(*crowd)) == [200] * 14 + [429] * 26
    assert status(await other) == 200
    assert budget.is_idle


async def test_refusals_of_small_requests_are_paced_and_large_ones_are_not() -> None:
    """A client that asks again at once waits a moment; a body that would be read meanwhile is
    refused at once.
    """
    held = Held()
    app = behind(held, budgets(max_concurrent_requests=1))
    task = asyncio.create_task(in_turn(app, "a", []))
    await asyncio.sleep(0.01)
    loop = asyncio.get_running_loop()

    async def refused(headers: dict[str, str]) -> float:
        started_s = loop.time()
        assert status(await in_turn(app, "a", [], headers)) == 429
        return loop.time() - started_s

    assert await refused({"content-length": "10"}) >= admission.PACE_S * 0.9
    assert await refused({"content-length": str(MAX_PACED_BYTES + 1)}) < admission.PACE_S / 2
    assert await refused({"transfer-encoding": "chunked"}) < admission.PACE_S / 2
    held.may_end.set()
    await task


async def test_retry_after_follows_the_rate_at_which_places_become_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one request ending every 4 s and eight of sixteen places to be freed, 28 to 32 s."""
    monkeypatch.setattr(admission, "PACE_S", 0.0)
    now_s = 0.0
    monkeypatch.setattr(admission.time, "monotonic", lambda: now_s)
    budget = budgets(max_concurrent_requests=16)
    for _ in range(14):
        await budget.enter("a", None)
    with pytest.raises(Overloaded) as unknown:
        await budget.enter("a", None)
    assert unknown.value.retry_after_s is None

    admitted = [await budget.enter(client, None) for client in "bc"]
    for _ in range(8):
        now_s += 4.0
        admitted.pop(0).leave()
        admitted.append(await budget.enter("b" if len(admitted) % 2 else "c", None))
    with pytest.raises(Overloaded) as known:
        await budget.enter("a", None)
    assert known.value.retry_after_s is not None
    assert 24.0 <= known.value.retry_after_s <= 36.0
    headers = error_response(known.value).headers
    assert headers["retry-after"] == str(math.ceil(known.value.retry_after_s))


async def test_bodies_are_bounded_in_sum() -> None:
    """Each byte counts twice.

    What would be too much is refused: by its announced size, and without one while it is read.
    """
    budget = budgets(max_held_bytes=8000)
    app = behind(read_all, budget)
    other = await budget.enter("other", 0)
    other.hold(4000)
    assert status(await in_turn(app, "a", [b"x" * 500] * 2)) == 200
    assert status(await in_turn(app, "a", [b"x" * 500] * 9)) == 429
    sent = await in_turn(app, "a", [], {"content-length": "1750"})
    assert status(sent) == 429
    other.leave()
    assert budget.held_bytes == 0
    assert status(await in_turn(app, "a", [b"x" * 500] * 6)) == 200
    assert budget.held_bytes == 0


async def test_large_responses_that_nobody_reads_are_given_up() -> None:
    """After the time to write it is as if the client had left, its bytes are free again, and no
    error is logged as ours.
    """
    seen: list[FinishedRequest] = []
    body = b"x" * (SMALL_WRITE_BYTES + 1)
    budget = budgets()
    app = behind(PlainTextResponse(body.decode()), budget, seen.append)

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
        await app(scope, receive, send)
    assert seen[0].status == CLIENT_LEFT
    assert budget.held_bytes == 0


async def test_a_large_response_without_room_is_refused_before_it_begins() -> None:
    """429 with a body of its own, whoever else holds the bytes."""
    budget = budgets(max_held_bytes=100_000)
    app = behind(PlainTextResponse("x" * 90_000), budget)
    other = await budget.enter("other", 0)
    other.hold(50_000)
    sent = await in_turn(app, "a", [])
    assert status(sent) == 429
    assert b"overloaded" in sent[-1]["body"]
    other.leave()
    assert budget.held_bytes == 0


async def test_probes_are_always_let_in() -> None:
    """A full service is not a dead one."""
    budget = budgets(max_concurrent_requests=1)
    app = behind(PlainTextResponse("alive"), budget)
    await budget.enter("a", 0)
    with pytest.raises(Overloaded):
        await budget.enter("a", None)

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
    await app(scope, lambda: asyncio.sleep(0, {"type": "http.request"}), send)  # type: ignore[arg-type]
    assert status(sent) == 200


async def test_the_rest_of_a_refused_body_is_read_for_a_few_clients() -> None:
    """They get the response and keep their connection; that of a fifth, or of one who announces too
    much, is closed.
    """

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("no", 400)(scope, receive, send)

    app = behind(refuse, budgets())
    chunks = [b"x" * 2**20] * 3
    announced = {"content-length": str(3 * 2**20)}

    def closes(sent: list[Message]) -> bool:
        return (b"connection", b"close") in sent[0]["headers"]

    assert not closes(await in_turn(app, "a", chunks, announced))
    stuck = [asyncio.create_task(stall(app, announced)) for _ in range(unread_bodies.MAX_DRAINED)]
    await asyncio.sleep(0.05)
    assert closes(await in_turn(app, "a", chunks, announced))
    stuck.pop().cancel()
    await asyncio.sleep(0.05)
    assert not closes(await in_turn(app, "a", chunks, announced))
    assert closes(await in_turn(app, "a", chunks, {"content-length": str(2**40)}))
    assert closes(await in_turn(app, "a", chunks, {"transfer-encoding": "chunked"}))
    for task in stuck:
        task.cancel()


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
            behind(stream, budgets())(scope, lambda: asyncio.sleep(0, {}), send), 5
        )  # type: ignore[arg-type]
