"""What requests may ask of tags over HTTP: vocabularies, scores, filters, tiles, embeddings and
scoring them again.
"""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from serve_app.api.app import create_app
from serve_app.config.service import parse_config
from serve_app.pipeline.local_tagger import LocalTagger
from tests.conftest import encoded, random_picture

PICTURE = encoded(random_picture(60, 40), "JPEG")
PETS = [
    {"label": "Cat", "category": "pets", "parents": ["animal"]},
    {"label": "dog", "category": "pets"},
    "animal",
    "car",
]
ALL = {"confidence_threshold": 0, "max_tags": 9, "include_raw_scores": True}


@pytest.fixture(scope="module")
def client(tiny: Callable[[str], Path]) -> Iterator[TestClient]:
    config = parse_config(
        {
            "vocabularies": {"pets": PETS, "boats": ["boat", "red_boat"]},
            "prompt_templates": ["{label}"],
            "limits": {"max_embeddings_per_request": 3},
            "plugins": {"siglip": {"model": str(tiny("siglip2")), "confidence_threshold": 0.0}},
        }
    )
    with TestClient(
        create_app(LocalTagger(config), config), raise_server_exceptions=False
    ) as client:
        yield client


def tag(client: TestClient, **parameters: object) -> dict[str, object]:
    response = client.post("/v1/tag", params=parameters, content=PICTURE)
    assert response.status_code == 200, response.text
    return response.json()


def labels(answer: dict[str, object]) -> set[str]:
    return {entry["label"] for entry in answer["tags"]}  # type: ignore[attr-defined]


def test_answers_say_what_they_were_scored_by(client: TestClient) -> None:
    """The vocabulary's name and a fingerprint of its own; none and another for labels of the
    request.
    """
    pets = tag(client)
    boats = tag(client, vocabulary="boats")
    own = tag(client, labels="cat")
    assert [answer["vocabulary"] for answer in (pets, boats, own)] == ["pets", "boats", None]
    assert len({answer["vocabulary_fingerprint"] for answer in (pets, boats, own)}) == 3
    assert labels(boats) == {"boat", "red_boat"}
    assert client.get("/v1/model").json()["vocabularies"] == ["pets", "boats"]


def test_unknown_vocabularies_are_not_found(client: TestClient) -> None:
    """404, with those that are there."""
    response = client.post("/v1/tag?vocabulary=ships", content=PICTURE)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_vocabulary")
    assert "pets, boats" in response.json()["error"]["message"]


@pytest.mark.parametrize("how", ["query", "json", "form"])
def test_filters_and_scores_come_by_every_transport(client: TestClient, how: str) -> None:
    """Lists with commas or repeated, in a query, JSON or a form."""
    asked = {"include_categories": "pets", "exclude_labels": "DOG", "score": "softmax"}
    match how:
        case "query":
            response = client.post("/v1/tag", params=asked, content=PICTURE)
        case "json":
            body = {"image": base64.b64encode(PICTURE).decode(), **asked, "exclude_labels": ["DOG"]}
            response = client.post("/v1/tag", json=body)
        case _:
            response = client.post("/v1/tag", files={"f": PICTURE}, data=asked)
    assert response.json()["score"] == "softmax"
    assert response.json()["tags"] == [{"label": "Cat", "confidence": 1.0}]


def test_logits_are_given_where_they_are_asked_for(client: TestClient) -> None:
    """As confidence, or beside it."""
    beside = {t["label"]: t["raw_score"] for t in tag(client, **ALL)["tags"]}  # type: ignore[attr-defined]
    instead = {t["label"]: t["confidence"] for t in tag(client, **ALL, score="logit")["tags"]}  # type: ignore[attr-defined]
    assert beside == pytest.approx(instead, rel=1e-4)
    assert "raw_score" not in tag(client)["tags"][0]  # type: ignore[index]


def test_parents_and_min_tags_are_the_requests(client: TestClient) -> None:
    """A parent is given with its child's confidence; two tags although none passes."""
    answer = {
        t["label"]: t["confidence"]
        for t in tag(client, confidence_threshold=0, parents="propagate")["tags"]
    }  # type: ignore[attr-defined]
    assert answer["animal"] >= answer["Cat"]
    assert len(tag(client, confidence_threshold=1, min_tags=2)["tags"]) == 2  # type: ignore[arg-type]


def test_high_quality_says_what_it_cost(client: TestClient) -> None:
    """Seven views of a 3:2 picture; the usual answer says nothing of it."""
    assert tag(client, quality="high")["metadata"] == {"quality": "high", "views": 7}
    assert "metadata" not in tag(client)
    many = client.post(
        "/v1/tag?quality=high", files=[("f", PICTURE), ("f", b"broken"), ("f", PICTURE)]
    ).json()["results"]
    assert [result.get("metadata") for result in many] == [
        {"quality": "high", "views": 7},
        None,
        {"quality": "high", "views": 7},
    ]


@pytest.mark.parametrize("form", ["float", "base64", "float16"])
def test_an_embedding_is_scored_again_as_its_picture_was(client: TestClient, form: str) -> None:
    """Numbers, base64 of float32, or of the float16 that one stores: the same tags without
    pixels.
    """
    expected = tag(client, **ALL)
    given = tag(
        client, **{"return": "embedding"}, encoding_format="float" if form == "float" else "base64"
    )["embedding"]
    body: dict[str, object] = {"embeddings": [given], **ALL}
    if form == "float16":
        halves = np.frombuffer(base64.b64decode(str(given)), "<f4").astype("<f2")
        body |= {"embeddings": [base64.b64encode(halves.tobytes()).decode()], "dtype": "float16"}
    answer = client.post("/v1/score", json=body).json()
    (result,) = answer["results"]
    found, wanted = (
        {t["label"]: t["raw_score"] for t in tags} for tags in (result["tags"], expected["tags"])
    )  # type: ignore[attr-defined]
    assert found == pytest.approx(wanted, abs=0.1 if form == "float16" else 1e-3)
    assert answer["vocabulary_fingerprint"] == expected["vocabulary_fingerprint"]


def test_embeddings_of_many_pictures_stand_with_their_tags(client: TestClient) -> None:
    """One of three is broken and has neither."""
    response = client.post(
        "/v1/tag?return=embedding", files=[("f", PICTURE), ("f", b"broken"), ("f", PICTURE)]
    )
    assert ["embedding" in result for result in response.json()["results"]] == [True, False, True]
    json_response = client.post(
        "/v1/tag?return=embedding", json={"images": ["###", base64.b64encode(PICTURE).decode()]}
    )
    assert ["embedding" in result for result in json_response.json()["results"]] == [False, True]


GOOD = [0.1] * 64
REFUSALS = [
    ({"embeddings": []}, 400, "at least one"),
    ({"embeddings": [GOOD] * 4}, 413, "at most 3"),
    ({"embeddings": [[0.0] * 64]}, 400, "zero"),
    ({"embeddings": [[1e300] * 64]}, 400, "not finite"),
    ({"embeddings": [GOOD, [0.1] * 63]}, 400, "different lengths"),
    ({"embeddings": [[0.1] * 63]}, 400, "n×64"),
    ({"embeddings": [[]]}, 400, "zero"),
    ({"embeddings": ["###"]}, 400, "base64"),
    ({"embeddings": ["AAA="]}, 400, "base64"),
    ({"embeddings": [GOOD], "dtype": "int8"}, 400, "dtype"),
    ({"embeddings": [GOOD], "vocabulary": "ships"}, 404, "pets"),
    ({"embeddings": [GOOD], "image": "x"}, 400, "not a parameter"),
    ({"embedding": [GOOD]}, 400, "did you mean embeddings"),
    ({}, 400, "embeddings"),
]


@pytest.mark.parametrize(("body", "status", "said"), REFUSALS, ids=range(len(REFUSALS)))
def test_embeddings_that_cannot_be_scored_are_refused(
    client: TestClient, body: dict[str, object], status: int, said: str
) -> None:
    """Each for what is wrong with it."""
    response = client.post(
        "/v1/score", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert response.status_code == status, response.text
    assert said in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("score=best", "score"),
        ("score=calibrated", "calibrate"),
        ("include_labels=ship", "not in the vocabulary"),
        ("exclude_categories=pet", "did you mean 'pets'"),
        ("min_tags=99&max_tags=3", "min_tags is 99"),
        ("quality=best", "quality"),
        ("return=pixels", "return"),
        ("vocabulary=pets&labels=cat", "either"),
        ("parents=both", "parents"),
    ],
)
def test_parameters_that_cannot_work_are_refused(client: TestClient, query: str, said: str) -> None:
    """400 with the parameter and what would do."""
    response = client.post(f"/v1/tag?{query}", content=PICTURE)
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"{", b"[]", b"", b"[" * 90_000])
def test_bodies_that_are_no_embeddings_are_refused(client: TestClient, body: bytes) -> None:
    """Not JSON, or not an object."""
    assert client.post("/v1/score", content=body).json()["error"]["code"] == "invalid_request"
