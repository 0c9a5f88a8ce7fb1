"""Hostile pictures through the HTTP face: each is answered with 200, 413, 415 or 422, and fails
only itself.
"""

import base64
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve_app.api.app import create_app
from serve_app.config.service import parse_config
from serve_app.pipeline.local_tagger import LocalTagger
from tests.conftest import encoded, random_picture
from tests.hostile_images import Hostile, corpus, formats

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow warns of what is wrong with them
PICTURE = encoded(random_picture(60, 40), "JPEG")


@pytest.fixture(scope="module")
def client(tiny: Callable[[str], Path]) -> Iterator[TestClient]:
    plugin = {"model": str(tiny("siglip")), "confidence_threshold": 0.0}
    limits = {"max_image_bytes": 2_000_000, "max_images_per_request": 1000}
    config = parse_config(
        {
            "labels": ["cat", "dog"],
            "limits": limits,
            "plugins": {"siglip": plugin},
            "telemetry": {"request_log": "off"},
        }
    )
    with TestClient(
        create_app(LocalTagger(config), config), raise_server_exceptions=False
    ) as client:
        yield client


def test_the_corpus_is_large_and_of_every_format() -> None:
    """At least 300 different pictures, and AVIF and HEIC are read where the tests run."""
    assert len({hostile.data for hostile in corpus()}) >= 300
    assert len({hostile.name for hostile in corpus()}) == len(corpus())
    assert {"AVIF", "HEIF"} <= set(formats())


def test_each_is_answered_as_it_should_be(client: TestClient) -> None:
    """Told with a code and a sentence where it is refused, and never by a 500."""
    wrong: list[tuple[str, int]] = []
    statuses: Counter[int] = Counter()
    for hostile in corpus():
        answer = client.post("/v1/tag", content=hostile.data)
        statuses[answer.status_code] += 1
        error = answer.json().get("error")
        told = (
            error["code"] and error["message"]
            if answer.status_code != 200
            else answer.json()["tags"]
        )
        if answer.status_code not in hostile.statuses or not told:
            wrong.append((hostile.name, answer.status_code))
    assert wrong == []
    assert min(statuses[200], statuses[415], statuses[422]) > 50


def test_together_each_fails_alone(client: TestClient) -> None:
    """All in one JSON request with a good picture at both ends: the good ones are tagged as alone,
    errors stay in their places.
    """
    hostile: list[Hostile] = [one for one in corpus() if one.data and len(one.data) < 20_000][:300]
    sent = [PICTURE, *(one.data for one in hostile), PICTURE]
    answer = client.post(
        "/v1/tag", json={"images": [base64.b64encode(data).decode() for data in sent]}
    )
    results = answer.json()["results"]
    alone = client.post("/v1/tag", content=PICTURE).json()["tags"]
    for good in (results[0], results[-1]):  # another batch rounds differently
        assert [tag["label"] for tag in good["tags"]] == [tag["label"] for tag in alone]
        assert [tag["confidence"] for tag in good["tags"]] == pytest.approx(
            [tag["confidence"] for tag in alone], rel=1e-3
        )
    assert len(results) == len(sent)
    for one, result in zip(hostile, results[1:-1], strict=True):
        if one.statuses == (200,):
            assert result["tags"], one.name
        if 200 not in one.statuses:
            assert result["error"]["code"] in (
                "unsupported_image",
                "invalid_image",
                "image_too_large",
            ), one.name


def test_a_format_that_is_switched_off_is_refused(tiny: Callable[[str], Path]) -> None:
    """What the configuration leaves out is 415, and the sentence names what is left."""
    plugin = {"model": str(tiny("siglip"))}
    config = parse_config(
        {
            "labels": ["cat"],
            "limits": {"image_formats": ["JPEG", "PNG"]},
            "plugins": {"siglip": plugin},
        }
    )
    with TestClient(create_app(LocalTagger(config), config)) as client:
        for kind, status in {"JPEG": 200, "PNG": 200, "GIF": 415, "AVIF": 415, "HEIF": 415}.items():
            answer = client.post("/v1/tag", content=encoded(random_picture(20, 20), kind))
            assert answer.status_code == status, kind
        assert "Send one of JPEG, PNG." in answer.json()["error"]["message"]
