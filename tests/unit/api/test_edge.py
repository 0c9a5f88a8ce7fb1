"""What every request passes: ids, keys, the time of its body, headers, and the record that logs and
metrics are told.
"""

import asyncio
import base64
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from serve_app.api.app import create_app
from serve_app.api.error_responses import ErrorResponses
from serve_app.api.keys import make_key
from serve_app.api.recording import CLIENT_LEFT, RecordRequests
from serve_app.api.request_log import console_line, json_line, request_log
from serve_app.api.routes import RouteTable
from serve_app.config.service import ServiceConfig, parse_config
from serve_app.errors import InvalidRequest
from serve_app.pipeline.local_tagger import LocalTagger
from serve_app.telemetry.record import FinishedRequest, StageTimes
from tests.conftest import encoded, random_picture

PICTURE = encoded(random_picture(60, 40), "JPEG")
KEY = make_key("alice")
OTHER = make_key("bob")


@pytest.fixture(scope="module")
def tagger(tiny: Callable[[str], Path]) -> LocalTagger:
    return LocalTagger(parse_config(settings(tiny)))


def settings(tiny: Callable[[str], Path], **blocks: Any) -> dict[str, Any]:
    plugin = {"model": str(tiny("siglip")), "confidence_threshold": 0.0}
    return {
        "labels": ["cat", "dog"],
        "plugins": {"siglip": plugin},
        "telemetry": {"request_log": "off"},
    } | blocks


class Face:
    """An application with some settings, and what its observer was told."""

    def __init__(self, tagger: LocalTagger, config: ServiceConfig) -> None:
        self.seen: list[FinishedRequest] = []
        self.app = create_app(tagger, config, (self.seen.append,))
        self.client = TestClient(self.app, raise_server_exceptions=False)


@pytest.fixture
def face(tagger: LocalTagger, tiny: Callable[[str], Path]) -> Callable[..., Face]:
    return lambda **blocks: Face(tagger, parse_config(settings(tiny, **blocks)))


@pytest.fixture
def keyed(face: Callable[..., Face], tmp_path: Path) -> Face:
    path = tmp_path / "keys"
    path.write_text(f"# who may ask\n{KEY.line}\n{OTHER.line}\n")
    return face(access={"api_keys": str(path)})


def test_request_ids_are_taken_and_returned(face: Callable[..., Face]) -> None:
    """A client's id comes back and is what the record has; one that could forge log lines is
    replaced.
    """
    plain = face()
    assert (
        plain.client.get("/healthz", headers={"X-Request-Id": "trace-7:a/b"}).headers[
            "x-request-id"
        ]
        == "trace-7:a/b"
    )
    assert plain.seen[0].request_id == "trace-7:a/b"
    for bad in ("a b", "x" * 129, '"quoted"', ""):
        made = plain.client.get("/healthz", headers={"X-Request-Id": bad}).headers["x-request-id"]
        assert len(made) == 32
        assert plain.seen[-1].request_id == made


def test_behind_serve_the_id_is_not_set_twice(
    tagger: LocalTagger, tiny: Callable[[str], Path]
) -> None:
    """Serve appends its own header, so none is set here."""
    app = create_app(tagger, parse_config(settings(tiny)), behind_serve=True)
    assert (
        "x-request-id" not in TestClient(app).get("/healthz", headers={"X-Request-Id": "a"}).headers
    )


@pytest.mark.parametrize("path", ["/healthz", "/v1/tag", "/nothing", "/docs"])
def test_every_answer_has_the_headers_browsers_go_by(face: Callable[..., Face], path: str) -> None:
    """Right ones, refusals and pages alike."""
    headers = face().client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert "unsafe-inline" not in headers["content-security-policy"].replace(
        "style-src 'self' 'unsafe-inline'", ""
    )
    assert "access-control-allow-origin" not in headers


def test_server_timing_and_record_name_the_same_stages(face: Callable[..., Face]) -> None:
    """A tagged image has decode, preprocess, encode and score in its header and in what observers
    are told.
    """
    plain = face()
    header = plain.client.post("/v1/tag", content=PICTURE).headers["server-timing"]
    assert [part.partition(";")[0] for part in header.split(", ")] == [
        "decode",
        "preprocess",
        "encode",
        "score",
        "total",
    ]
    (seen,) = plain.seen
    assert set(seen.stages) == {"decode", "preprocess", "encode", "score"}
    assert all(0 < seconds <= seen.seconds for seconds in seen.stages.values())
    assert (seen.method, seen.route, seen.status, seen.code, seen.images) == (
        "POST",
        "/v1/tag",
        200,
        None,
        1,
    )
    assert seen.bytes_in == len(PICTURE)


@pytest.mark.parametrize(
    ("method", "path", "content", "expected"),
    [
        ("POST", "/v1/tag", b"no picture", ("/v1/tag", 415, "unsupported_image")),
        ("GET", "/v1/tag", None, ("/v1/tag", 405, "method_not_allowed")),
        (
            "GET",
            "/v1/vocabularies/nobody",
            None,
            ("/v1/vocabularies/{name}", 404, "unknown_vocabulary"),
        ),
        ("POST", "/v1/embeddings", b"{}", ("/v1/embeddings", 400, "invalid_request")),
        ("POST", "/hf", b"", ("/hf", 400, "invalid_request")),
        ("GET", "/etc/passwd?token=secret", None, ("other", 404, "not_found")),
    ],
)
def test_the_record_has_the_documented_route_and_the_code(
    face: Callable[..., Face],
    method: str,
    path: str,
    content: bytes | None,
    expected: tuple[str, int, str],
) -> None:
    """So metrics have few routes, and refusals are counted by code, whatever dialect they were said
    in.
    """
    plain = face()
    plain.client.request(method, path, content=content)
    (seen,) = plain.seen
    assert (seen.route, seen.status, seen.code) == expected


def test_without_a_key_only_probes_and_pages_are_open(keyed: Face) -> None:
    """Everything else is refused in the shape of whoever asks, before its body is read."""
    for path in ("/healthz", "/readyz", "/v2/health/live", "/docs", "/openapi.json"):
        assert keyed.client.get(path).status_code == 200, path
    for method, path in [
        ("POST", "/v1/tag"),
        ("POST", "/"),
        ("POST", "/hf"),
        ("GET", "/v1/config"),
        ("POST", "/healthz"),
        ("GET", "/docsx"),
    ]:
        answer = keyed.client.request(method, path, content=PICTURE if method == "POST" else None)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
    assert keyed.client.post("/v1/tag").json()["error"]["code"] == "unauthorized"
    assert keyed.client.post("/hf").json()["error_code"] == "unauthorized"
    assert set(keyed.client.post("/v1/embeddings").json()["error"]) == {
        "message",
        "type",
        "param",
        "code",
    }


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY.key}"},
        {"authorization": f"bearer {KEY.key}"},
        {"X-Api-Key": KEY.key},
    ],
)
def test_a_known_key_opens_and_its_name_is_noted(keyed: Face, headers: dict[str, str]) -> None:
    """As clients of OpenAI and Hugging Face send it, or in a header of its own."""
    assert keyed.client.post("/v1/tag", content=PICTURE, headers=headers).status_code == 200
    assert keyed.seen[-1].key == "alice"


@pytest.mark.parametrize(
    "value",
    [
        "Bearer ",
        "Bearer wrong",
        f"Basic {KEY.key}",
        f"Bearer {KEY.key}x",
        f"Bearer {KEY.key[:-1]}",
        "é",
    ],
    ids=["empty", "wrong", "basic", "longer", "shorter", "not ASCII"],
)
def test_another_key_is_refused(keyed: Face, value: str) -> None:
    """Whatever is wrong with it, and the answer does not hold it."""
    answer = keyed.client.post(
        "/v1/tag", content=PICTURE, headers={"Authorization": value.encode()}
    )
    assert answer.status_code == 401
    assert "wrong" not in answer.text


def test_cross_origin_is_off_and_can_be_let_in(face: Callable[..., Face], tmp_path: Path) -> None:
    """A preflight needs no key; only the named origin gets leave."""
    path = tmp_path / "keys"
    path.write_text(KEY.line)
    open_to = face(
        access={"api_keys": str(path), "cors_origins": ["https://app.example.org"]}
    ).client
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    preflight = open_to.options("/v1/tag", headers={"Origin": "https://app.example.org"} | asked)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (
        200,
        "https://app.example.org",
    )
    assert (
        open_to.options("/v1/tag", headers={"Origin": "https://evil.example"} | asked).status_code
        == 400
    )
    answer = open_to.get("/v1/model", headers={"Origin": "https://app.example.org"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (
        401,
        "https://app.example.org",
    )
    assert "x-request-id" in answer.headers["access-control-expose-headers"]


def test_the_document_says_that_keys_are_asked_for(keyed: Face, face: Callable[..., Face]) -> None:
    """So that /docs has a field for one and clients made from the document send it."""
    document = keyed.client.get("/openapi.json").json()
    assert document["security"] == [{"key": []}]
    assert document["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    assert {"401", "408"} <= set(document["paths"]["/v1/tag"]["post"]["responses"])
    assert "security" not in face().client.get("/openapi.json").json()


def test_docs_can_be_left_out(face: Callable[..., Face]) -> None:
    """Neither the page nor the document is there then."""
    client = face(access={"docs": False}).client
    assert [
        client.get(path).status_code
        for path in ("/docs", "/openapi.json", "/docs/assets/swagger-ui.css")
    ] == [404, 404, 404]


async def drive(
    app: Any,
    messages: list[Message | float],
    method: str = "POST",
    path: str = "/v1/tag",
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> list[Message]:
    """Send messages to an application, numbers being seconds to wait before the next, and return
    what it sends.
    """
    sent: list[Message] = []
    left = list(messages)

    async def receive() -> Message:
        if left and isinstance(left[0], float):
            await asyncio.sleep(left.pop(0))  # type: ignore[arg-type]
        return left.pop(0) if left else {"type": "http.disconnect"}  # type: ignore[return-value]

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": list(headers),
    }
    await app(
        scope
        | {
            "http_version": "1.1",
            "scheme": "http",
            "server": ("test", 80),
            "client": ("test", 1),
            "root_path": "",
        },
        receive,
        send,
    )
    return sent


async def test_a_body_that_trickles_in_is_refused_with_408(face: Callable[..., Face]) -> None:
    """The time is of the whole body: a client that sends a byte now and then does not hold the
    request open.
    """
    slow = face(limits={"body_timeout_s": 0.05})
    part: Message = {"type": "http.request", "body": b"x", "more_body": True}
    sent = await drive(slow.app, [part, 0.02, part, 0.02, part, 0.02, part, 0.02, part])
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["error"]["code"] == "request_timeout"
    assert (slow.seen[0].status, slow.seen[0].code) == (408, "request_timeout")


async def test_a_client_that_left_is_noted_as_such(face: Callable[..., Face]) -> None:
    """With the status that proxies use for it, and no answer is lost on it."""
    plain = face()
    part: Message = {"type": "http.request", "body": PICTURE[:100], "more_body": True}
    await drive(plain.app, [part])
    form: Message = {
        "type": "http.request",
        "body": b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\nx',
        "more_body": True,
    }
    await drive(plain.app, [form], headers=[(b"content-type", b"multipart/form-data; boundary=b")])
    await drive(plain.app, [part], path="/hf")

    async def gone(_: Message) -> None:
        raise OSError

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/healthz",
        "raw_path": b"/healthz",
        "query_string": b"",
        "headers": [],
    }
    with pytest.raises(OSError):
        await plain.app(
            scope | {"server": ("t", 80), "client": ("t", 1), "root_path": "", "scheme": "http"},
            None,
            gone,
        )
    assert [(seen.status, seen.code) for seen in plain.seen] == [(CLIENT_LEFT, None)] * 4


async def test_an_answer_that_broke_off_is_our_fault_and_not_the_clients(
    tagger: LocalTagger, tiny: Callable[[str], Path]
) -> None:
    """An error after the answer has begun is noted as 500 and goes on to the server, which closes
    the connection.
    """
    seen: list[FinishedRequest] = []

    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise broken

    for broken in (RuntimeError("a bug"), InvalidRequest("too late")):
        recorded = RecordRequests(ErrorResponses(breaks, RouteTable([])), (seen.append,))
        with pytest.raises(type(broken)):
            await drive(recorded, [])
    assert [one.status for one in seen] == [500, 500]


async def test_an_observer_that_fails_takes_no_answer_with_it(
    tagger: LocalTagger, tiny: Callable[[str], Path]
) -> None:
    """A full disk under the log is told in the log of the replica, and the next observer is told
    all the same.
    """
    seen: list[FinishedRequest] = []

    def full(_: FinishedRequest) -> None:
        raise OSError("No space left on device")

    app = create_app(tagger, parse_config(settings(tiny)), (full, seen.append))
    sent = await drive(app, [], "GET", "/healthz")
    assert (sent[0]["status"], len(seen)) == (200, 1)


def test_images_that_cannot_be_unpacked_are_noted(face: Callable[..., Face]) -> None:
    """They never reach the tagger, and are counted all the same, alone and among others, streamed
    or not.
    """
    plain = face()
    images = {"images": ["###", base64.b64encode(PICTURE).decode(), "https://example.org/a.jpg"]}
    for headers in ({}, {"Accept": "application/x-ndjson"}):
        plain.client.post("/v1/tag", json=images, headers=headers)
        assert plain.seen[-1].unread == ("invalid_request", "invalid_request")
        assert plain.seen[-1].images == 3


def test_stages_that_come_at_once_are_counted_once() -> None:
    """Seven tiles that are encoded side by side took as long as one; two waits after each other add
    up.
    """
    times = StageTimes(
        [("encode", 1.0, 2.0)] * 7
        + [("encode", 1.5, 2.5), ("queue", 0.0, 0.1), ("queue", 0.5, 0.75)]
    )
    assert times.seconds() == pytest.approx({"encode": 1.5, "queue": 0.35})


ANSWERED = FinishedRequest(
    "id-1", "alice", "POST", "/v1/tag", 422, "invalid_image", 0.0123, 1000, 1, {"decode": 0.0015}
)


def test_the_log_is_one_line_a_request() -> None:
    """As JSON it parses back, with times in milliseconds; for people it has the same."""
    out = io.StringIO()
    request_log("json", out)(ANSWERED)
    entry = json.loads(out.getvalue())
    assert out.getvalue().count("\n") == 1
    assert entry.pop("time").endswith("+00:00")
    assert entry == {
        "event": "request",
        "request_id": "id-1",
        "key": "alice",
        "method": "POST",
        "route": "/v1/tag",
        "status": 422,
        "code": "invalid_image",
        "duration_ms": 12.3,
        "bytes_in": 1000,
        "images": 1,
        "stages_ms": {"decode": 1.5},
    }
    out = io.StringIO()
    request_log("console", out)(ANSWERED)
    assert (
        "POST /v1/tag 422 invalid_image 12.3 ms images=1 decode=1.5 key=alice id=id-1"
        in out.getvalue()
    )


def test_no_key_query_or_content_is_logged(keyed: Face, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the key, nor its hash, nor labels of the query, nor the picture."""
    from datetime import UTC, datetime

    keyed.client.post("/v1/tag?labels=secretlabel", content=PICTURE, headers={"X-Api-Key": KEY.key})
    for line in (json_line, console_line):
        text = line(keyed.seen[-1], datetime.now(UTC))
        assert "alice" in text
        for secret in (KEY.key, KEY.line.split(":")[1], "secretlabel", "JFIF"):
            assert secret not in text
            assert secret not in caplog.text


def test_configuration_is_shown_without_paths_or_keys(
    keyed: Face, tiny: Callable[[str], Path]
) -> None:
    """What the plan and the live settings say, and whether keys are asked for, and no more."""
    answer = keyed.client.get("/v1/config", headers={"X-Api-Key": KEY.key})
    shown = answer.json()
    assert shown["plugins"]["siglip"]["confidence_threshold"] == 0.0
    assert shown["plugins"]["siglip"]["model"] == tiny("siglip").name
    assert set(shown["serving"]["image_encoder"]) == {
        "min_replicas",
        "max_replicas",
        "num_cpus",
        "num_gpus",
    }
    assert shown["limits"]["max_images_per_request"] == 64
    assert str(tiny("siglip").parent) not in answer.text
    assert "sha256" not in answer.text
