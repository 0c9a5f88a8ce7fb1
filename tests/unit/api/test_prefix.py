"""A service below a prefix, beside another one, answers as it would alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve_app.api.app import create_app
from serve_app.config.access import Access
from serve_app.demo import settings as demo_settings
from serve_app.demo.settings import demo_config
from serve_app.pipeline.local_tagger import LocalTagger

PICTURE = (Path(demo_settings.__file__).parent / "samples" / "red-circle.jpg").read_bytes()
PATHS = (
    "/healthz",
    "/v1/vocabularies",
    "/v1/model",
    "/page/page.css",
    "/",
    "/docs",
    "/docs/assets/swagger-ui.css",
    "/v2/health/ready",
    "/nothing",
)


@pytest.fixture(scope="module")
def tagger() -> LocalTagger:
    return LocalTagger(demo_config())


@pytest.fixture(scope="module")
def alone(tagger: LocalTagger) -> Iterator[TestClient]:
    with TestClient(create_app(tagger, demo_config())) as client:
        yield client


@pytest.fixture(scope="module")
def below(tagger: LocalTagger) -> Iterator[TestClient]:
    with TestClient(
        create_app(tagger, demo_config()), root_path="/base", follow_redirects=False
    ) as client:
        yield client


@pytest.mark.parametrize("path", PATHS)
def test_every_path_is_there_below_the_prefix(
    alone: TestClient, below: TestClient, path: str
) -> None:
    """As Serve calls an application: the whole path, and the prefix as `root_path`."""
    one = alone.get(path)
    other = below.get(f"/base{path}")
    assert one.status_code == other.status_code
    assert one.content == other.content


def test_tags_are_the_same(alone: TestClient, below: TestClient) -> None:
    """A request below the prefix is the same request."""
    answers = [
        client.post(path, content=PICTURE)
        for client, path in ((alone, "/v1/tag"), (below, "/base/v1/tag"))
    ]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["tags"] == answers[1].json()["tags"] != []
    assert (
        below.post("/base", content=PICTURE, headers={"content-type": "image/jpeg"}).status_code
        == 200
    ), "the Hugging Face path of a model"


def test_the_prefix_alone_leads_to_the_page(below: TestClient) -> None:
    """Its links are relative: from `/base` they would lead beside it."""
    answer = below.get("/base")
    assert (answer.status_code, answer.headers["location"]) == (307, "/base/")
    page = below.get("/base/").text
    assert 'src="page/page.js"' in page
    assert "url: 'openapi.json'" in below.get("/base/docs").text


def test_the_document_says_where_it_is(below: TestClient) -> None:
    """Clients made from it ask below the prefix."""
    assert below.get("/base/openapi.json").json()["servers"] == [{"url": "/base"}]


def test_keys_are_asked_for_below_the_prefix(
    tagger: LocalTagger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not where they are not asked for without one."""
    monkeypatch.setenv("SIGLIP_API_KEYS", "alice sha256:" + "0" * 64)
    config = demo_config().model_copy(update={"access": Access(api_keys="env")})
    with TestClient(create_app(tagger, config), root_path="/base") as client:
        assert client.post("/base/v1/tag", content=PICTURE).status_code == 401
        assert client.get("/base/healthz").status_code == 200
