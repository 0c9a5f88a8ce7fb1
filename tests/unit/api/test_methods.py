"""HEAD and OPTIONS on every path, as probes, caches and browsers send them."""

import http.client
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

from serve_app.api.app import create_app
from serve_app.config.access import Access
from serve_app.demo.settings import demo_config
from serve_app.errors import Unavailable
from serve_app.pipeline.local_tagger import LocalTagger
from serve_app.telemetry.record import FinishedRequest
from tests.http_face import served

PARAMETERS = {"{name}": "default", "{model:path}": "demo", "{model}": "demo"}
OTHERS = ("/page/page.js", "/docs/assets/swagger-ui.css", "/docs", "/", "/openapi.json")


@pytest.fixture(scope="module")
def tagger() -> LocalTagger:
    return LocalTagger(demo_config())


@pytest.fixture(scope="module")
def answered() -> list[FinishedRequest]:
    """What observers were told of."""
    return []


@pytest.fixture(scope="module")
def client(tagger: LocalTagger, answered: list[FinishedRequest]) -> Iterator[TestClient]:
    with TestClient(create_app(tagger, demo_config(), (answered.append,))) as client:
        yield client


def documented(client: TestClient) -> dict[str, set[str]]:
    """Return the methods of every path of the document, its parameters filled in."""
    paths = {}
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for name, value in PARAMETERS.items():
            path = path.replace(name, value)
        paths[path] = {method.upper() for method in methods}
    assert {"/healthz", "/readyz", "/v1/model", "/v2/models/demo"} <= paths.keys()
    return paths


def test_head_is_answered_as_get_without_the_body(client: TestClient) -> None:
    """On every path that GET reads: the same status and headers, the length included."""
    readable = [path for path, methods in documented(client).items() if "GET" in methods]
    for path in (*readable, *OTHERS):
        got = client.get(path)
        head = client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b"") == (200, b""), path
        for name in ("content-type", "content-length", "etag", "content-security-policy"):
            assert head.headers.get(name) == got.headers.get(name), (path, name)


def test_head_sends_no_body_over_a_connection(tagger: LocalTagger) -> None:
    """A second request on the same connection gets its own response, so nothing of a body was sent
    before it.
    """
    with served(create_app(tagger, demo_config())) as address:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)
        for path in (
            "/healthz",
            "/v1/vocabularies/default",
            "/docs/assets/swagger-ui.css",
            "/nothing",
            "/v1/tag",
        ):
            connection.request("HEAD", path)
            response = connection.getresponse()
            assert response.read() == b""
            assert response.status == {"/nothing": 404, "/v1/tag": 405}.get(path, 200)
            connection.request("GET", "/healthz")
            assert connection.getresponse().read() == b'{"status":"alive"}'


def test_options_names_the_methods_of_a_path(client: TestClient) -> None:
    """204 without content; a path that is not there stays 404."""
    for path, methods in documented(client).items():
        response = client.options(path)
        expected = methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
        assert (response.status_code, response.content) == (204, b"")
        assert set(response.headers["allow"].split(", ")) == expected, path
    assert client.options("/nothing").status_code == 404


def test_other_methods_are_refused_with_those_that_there_are(client: TestClient) -> None:
    """HEAD is among them wherever GET is."""
    assert client.put("/healthz").headers["allow"] == "GET, HEAD"
    assert client.put("/v1/tag").headers["allow"] == "POST"
    assert client.head("/v1/tag").status_code == 405


def test_logs_name_the_method_and_the_route(
    client: TestClient, answered: list[FinishedRequest]
) -> None:
    """HEAD is not logged as GET, and keeps its route."""
    answered.clear()
    client.head("/v1/vocabularies/default")
    client.options("/healthz")
    assert [(one.method, one.route, one.status) for one in answered] == [
        ("HEAD", "/v1/vocabularies/{name}", 200),
        ("OPTIONS", "/healthz", 204),
    ]


def test_keys_are_asked_for_as_for_get(
    tagger: LocalTagger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probes are open by every reading method, everything else by none."""
    monkeypatch.setenv("SIGLIP_API_KEYS", "alice sha256:" + "0" * 64)
    config = demo_config().model_copy(update={"access": Access(api_keys="env")})
    with TestClient(create_app(tagger, config)) as client:
        for path, is_open in (
            ("/healthz", True),
            ("/readyz", True),
            ("/", True),
            ("/v1/model", False),
        ):
            assert client.head(path).status_code == (200 if is_open else 401)
            assert client.options(path).status_code == (204 if is_open else 401)


def test_pages_of_other_origins_may_send_head(tagger: LocalTagger) -> None:
    """Their browsers ask for leave first if a key is sent."""
    config = demo_config().model_copy(
        update={"access": Access(cors_origins=("https://app.example",))}
    )
    asked = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "HEAD",
        "Access-Control-Request-Headers": "authorization",
    }
    with TestClient(create_app(tagger, config)) as client:
        assert client.options("/v1/model", headers=asked).status_code == 200


def test_a_part_that_is_not_ready_answers_head_as_get() -> None:
    """Probes that send HEAD see 503 until the models are loaded."""

    class Starting:
        async def describe(self) -> None:
            raise Unavailable("The models are not loaded yet.")

    with TestClient(create_app(Starting(), demo_config())) as client:  # type: ignore[arg-type]
        assert client.head("/readyz").status_code == client.get("/readyz").status_code == 503
        assert client.head("/healthz").status_code == 200
