"""What a real server cannot be made to do at will: refusals with a date, broken connections, a
gateway's page. Both clients.
"""

import asyncio
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.client import AsyncClient, Client, calls
from serve_app.errors import (
    ConfigError,
    Overloaded,
    PayloadTooLarge,
    RequestError,
    ServiceError,
    TaggerError,
    Unavailable,
)

AT = "http://tags.example"
ABOUT = {
    "vocabulary": "default",
    "vocabulary_fingerprint": "f",
    "score": "sigmoid",
    "model": "m",
    "version": "9",
    "inference_time_ms": 1.0,
}
TAGGED = {"tags": [{"label": "cat", "confidence": 0.5, "colour": "new"}], "news": 1} | ABOUT
BUSY = {"error": {"code": "overloaded", "message": "Every queue is full."}}
Reply = httpx.Response | Exception


class Scripted:
    """A service that gives one reply after the other, and a clock that only the waits move."""

    def __init__(self, kind: str, *replies: Reply) -> None:
        self.kind = kind
        self.replies = list(replies)
        self.requests: list[httpx.Request] = []
        self.waits: list[float] = []

    def ask(
        self, method: str, *arguments: Any, settings: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        """Call a method of a client and return what it returns."""
        given: dict[str, Any] = {
            "transport": httpx.MockTransport(self._reply),
            "clock": lambda: sum(self.waits),
            "jitter": lambda: 0.0,
        }
        given |= settings or {}
        if self.kind == "Client":
            with Client(AT, "key", wait=self.waits.append, **given) as client:
                return getattr(client, method)(*arguments, **options)
        return asyncio.run(self._ask(given, method, arguments, options))

    async def _ask(self, given: dict[str, Any], method: str, arguments: Any, options: Any) -> Any:
        async def wait(seconds: float) -> None:
            self.waits.append(seconds)

        async with AsyncClient(AT, "key", wait=wait, **given) as client:
            return await getattr(client, method)(*arguments, **options)

    def _reply(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return httpx.Response(
            reply.status_code, headers=reply.headers, content=reply.content
        )  # parameters are shared by tests


@pytest.fixture(params=["Client", "AsyncClient"])
def scripted(request: pytest.FixtureRequest) -> Callable[..., Scripted]:
    """Return a function from replies to a scripted service, for each client in turn."""
    return lambda *replies: Scripted(request.param, *replies)


def test_refusals_are_waited_out_under_one_request_id(scripted: Callable[..., Scripted]) -> None:
    """Seconds, a date and nothing at all; the picture is sent whole each time, and the retries
    share their id.
    """
    date = {"Date": "Wed, 21 Oct 2015 07:28:00 GMT", "Retry-After": "Wed, 21 Oct 2015 07:28:09 GMT"}
    service = scripted(
        httpx.Response(429, json=BUSY, headers={"Retry-After": "2"}),
        httpx.Response(503, headers=date),
        httpx.Response(503),
        httpx.Response(200, json=TAGGED),
    )
    answer = service.ask("tag", b"picture", max_tags=3)
    assert service.waits == [2.0, 9.0, 0.5]
    assert answer.tags[0].label == "cat"
    assert {request.content for request in service.requests} == {b"picture"}
    assert len({request.headers["x-request-id"] for request in service.requests}) == 1
    assert {
        (str(request.url), request.headers["authorization"]) for request in service.requests
    } == {(f"{AT}/v1/tag?max_tags=3", "Bearer key")}


def test_each_call_has_a_request_id_of_its_own(scripted: Callable[..., Scripted]) -> None:
    """The service's log tells two calls apart."""
    service = scripted(httpx.Response(200, json=TAGGED), httpx.Response(200, json=TAGGED))
    service.ask("tag", b"picture")
    service.ask("tag", b"picture")
    first, second = (request.headers["x-request-id"] for request in service.requests)
    assert first != second


@pytest.mark.parametrize(
    "broken",
    [
        httpx.ConnectError("x"),
        httpx.ConnectTimeout("x"),
        httpx.ReadError("x"),
        httpx.RemoteProtocolError("x"),
    ],
)
def test_a_broken_connection_is_tried_again(
    scripted: Callable[..., Scripted], broken: Exception
) -> None:
    """Tagging changes nothing, so a request whose answer was lost is sent again."""
    service = scripted(broken, httpx.Response(200, json=TAGGED))
    assert service.ask("tag", b"picture").model == "m"
    assert len(service.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 404, 408, 413, 415, 422, 500, 504])
def test_other_refusals_are_final(scripted: Callable[..., Scripted], status: int) -> None:
    """They are raised after one try, also where a header asks to come back."""
    service = scripted(
        httpx.Response(
            status, json={"error": {"code": "x", "message": "m"}}, headers={"Retry-After": "1"}
        )
    )
    with pytest.raises(TaggerError) as caught:
        service.ask("tag", b"picture")
    assert service.waits == []
    assert caught.value.status == status
    assert caught.value.request_id == service.requests[0].headers["x-request-id"]
    assert caught.value.request_id in caught.value.__notes__[0]


def test_tries_are_bounded(scripted: Callable[..., Scripted]) -> None:
    """After `max_tries` the last refusal is raised, and how often it was tried stands in the
    note.
    """
    service = scripted(*[httpx.Response(429, json=BUSY) for _ in range(3)])
    with pytest.raises(Overloaded, match="Every queue is full") as caught:
        service.ask("tag", b"picture", settings={"max_tries": 3})
    assert len(service.requests) == 3
    assert "tried 3 times" in caught.value.__notes__[0]


def test_the_deadline_bounds_waits_and_tries(scripted: Callable[..., Scripted]) -> None:
    """No wait goes past it, and a try's own time is what is left of it."""
    service = scripted(*[httpx.Response(503, headers={"Retry-After": "4"}) for _ in range(3)])
    with pytest.raises(Unavailable):
        service.ask("tag", b"picture", settings={"deadline_s": 10.0, "max_tries": 9})
    assert service.waits == [4.0, 4.0]
    assert [request.extensions["timeout"]["read"] for request in service.requests] == [
        10.0,
        6.0,
        2.0,
    ]


def test_what_the_service_asks_for_is_bounded(scripted: Callable[..., Scripted]) -> None:
    """An hour is waited as `max_wait_s`."""
    service = scripted(
        httpx.Response(429, json=BUSY, headers={"Retry-After": "3600"}),
        httpx.Response(200, json=TAGGED),
    )
    service.ask("tag", b"picture", settings={"max_wait_s": 5.0})
    assert service.waits == [5.0]


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, html="<html>welcome</html>"),
        httpx.Response(200, json=["no object"]),
        httpx.Response(200, json={"tags": [{"label": 1}]}),
        httpx.Response(200, content=b"\xff"),
    ],
    ids=["html", "list", "fields", "bytes"],
)
def test_an_answer_that_is_not_the_services_is_told(
    scripted: Callable[..., Scripted], answer: httpx.Response
) -> None:
    """A page of a gateway, or of another service, is no traceback of a parser."""
    with pytest.raises(
        ServiceError,
        match=f"{AT} responded with status 200 .*, which is not a response of siglip-serve",
    ) as caught:
        scripted(answer).ask("tag", b"picture")
    assert caught.value.status == 200
    assert caught.value.request_id


def images_in_request(request: httpx.Request) -> int:
    """Return the number of images: files of a form, or entries of a JSON array."""
    if request.headers["content-type"].startswith("multipart/form-data"):
        return request.content.count(b'name="images"; filename=')
    return len(json.loads(request.content)["images"])


def test_pictures_that_were_refused_for_now_are_sent_again_alone(
    scripted: Callable[..., Scripted],
) -> None:
    """Of one request of several, what was tagged and what is damaged is kept, in the order
    given.
    """
    damaged = {"error": {"code": "invalid_image", "message": "damaged"}}
    service = scripted(
        httpx.Response(200, json={"results": [BUSY, {"tags": []}, damaged]} | ABOUT),
        httpx.Response(
            200, json={"results": [{"tags": [{"label": "late", "confidence": 1}]}]} | ABOUT
        ),
    )
    late, empty, broken = service.ask("tag_many", [b"a", b"b", b"c"])
    assert late.tags[0].label == "late"
    assert empty.tags == ()
    assert broken.code == "invalid_image"
    assert broken.request_id == service.requests[0].headers["x-request-id"]
    assert [images_in_request(request) for request in service.requests] == [3, 1]
    assert len(service.waits) == 1


def test_a_picture_that_is_too_large_alone_has_its_error_in_its_place(
    scripted: Callable[..., Scripted],
) -> None:
    """The request of a single picture says only of that one that it is too large; of several it is
    raised.
    """
    large = {"error": {"code": "payload_too_large", "message": "Send a smaller picture."}}
    service = scripted(
        httpx.Response(413, json=large),
        httpx.Response(200, json={"results": [{"tags": []}]} | ABOUT),
    )
    outcomes = service.ask("tag_many", [b"a", b"b"], images_per_request=1)
    assert [type(outcome).__name__ for outcome in outcomes] == ["PayloadTooLarge", "Tagged"]
    with pytest.raises(PayloadTooLarge):
        scripted(httpx.Response(413, json=large)).ask("tag_many", [b"a", b"b"])


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three files of one byte."""
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


@pytest.mark.parametrize(
    ("status", "code"), [(413, "payload_too_large"), (504, "deadline_exceeded")]
)
def test_files_that_are_too_many_for_one_request_are_sent_in_smaller_ones(
    scripted: Callable[..., Scripted], files: list[Path], status: int, code: str
) -> None:
    """A file has that error only if it was alone in its request."""
    refused = httpx.Response(status, json={"error": {"code": code, "message": "Send less."}})
    tagged = httpx.Response(200, json={"results": [{"tags": []}]} | ABOUT)
    service = scripted(refused, tagged, refused, refused, tagged)
    outcomes = service.ask("tag_group", files)
    assert [type(outcome).__name__ == "Tagged" for outcome in outcomes] == [True, False, True]
    assert [outcome.code for outcome in outcomes if isinstance(outcome, TaggerError)] == [code]
    assert [images_in_request(request) for request in service.requests] == [3, 1, 2, 1, 1]


def test_files_that_are_large_together_are_sent_apart(
    scripted: Callable[..., Scripted], files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the service has to refuse them."""
    monkeypatch.setattr(calls, "MAX_REQUEST_BYTES", 2)
    one = {"tags": []}
    service = scripted(
        httpx.Response(200, json={"results": [one]} | ABOUT),
        httpx.Response(200, json={"results": [one, one]} | ABOUT),
    )
    assert len(service.ask("tag_group", files)) == 3
    assert [images_in_request(request) for request in service.requests] == [1, 2]


def test_an_error_of_a_request_is_the_outcome_of_each_of_its_files(
    scripted: Callable[..., Scripted], files: list[Path]
) -> None:
    """A file that could not be read keeps its own error."""
    service = scripted(httpx.Response(401))
    outcomes = service.ask("tag_group", [*files, files[0].with_name("missing")])
    kinds = [type(outcome).__name__ for outcome in outcomes]
    assert kinds == ["Unauthorized"] * 3 + ["SourceUnavailable"]
    assert [images_in_request(request) for request in service.requests] == [3]


def test_an_answer_with_too_few_results_is_refused(scripted: Callable[..., Scripted]) -> None:
    """Results are matched by their place, so one that is missing would shift all others."""
    with pytest.raises(ServiceError, match="not a response of siglip-serve"):
        scripted(httpx.Response(200, json={"results": [{"tags": []}]} | ABOUT)).ask(
            "tag_many", [b"a", b"b"]
        )


@pytest.mark.parametrize(
    "reply",
    [httpx.Response(503), httpx.ConnectError("x"), httpx.Response(429), httpx.ReadTimeout("x")],
)
def test_a_service_that_does_not_answer_is_not_ready(
    scripted: Callable[..., Scripted], reply: Reply
) -> None:
    """Asked once, without waiting."""
    service = scripted(reply)
    assert service.ask("ready") is False
    assert (len(service.requests), service.waits) == (1, [])


def test_being_refused_is_not_being_unready(scripted: Callable[..., Scripted]) -> None:
    """A wrong key would never become ready, so it is raised."""
    with pytest.raises(RequestError, match="API key"):
        scripted(httpx.Response(401)).ask("ready")


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_the_key_comes_from_the_environment_and_is_never_shown(
    client: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An argument goes before the variable; neither stands in the repr, nor in the sentence about a
    key that cannot work.
    """
    monkeypatch.setenv("SIGLIP_API_KEY", "from-environment")
    for given, sent in ((None, "from-environment"), ("given", "given")):
        shown = client(AT, given)
        assert shown._exchange.api_key == sent
        assert sent not in repr(shown)
        assert "'****'" in repr(shown)
    monkeypatch.delenv("SIGLIP_API_KEY")
    assert client(AT)._exchange.api_key is None
    with pytest.raises(ConfigError) as caught:
        client(AT, "se cret\n")
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "tags.example",
        "ftp://tags.example",
        "http://",
        "http://u:p@tags.example",
        "http://x/?a=1",
        "http://tags.example:port",
        "",
    ],
)
def test_an_address_that_cannot_work_is_refused_at_once(url: str) -> None:
    """With an example of one that can."""
    with pytest.raises(ConfigError, match="such as http://"):
        Client(url)


def test_both_clients_have_the_same_methods() -> None:
    """With the same arguments; only the ends of a `with` are named differently."""
    blocking, awaited = (
        {name: value for name, value in vars(cls).items() if not name.startswith("_")}
        for cls in (Client, AsyncClient)
    )
    assert blocking.keys() - awaited.keys() == {"close"}
    assert awaited.keys() - blocking.keys() == {"aclose"}
    for name in blocking.keys() & awaited.keys():
        assert (
            inspect.signature(blocking[name]).parameters
            == inspect.signature(awaited[name]).parameters
        )
