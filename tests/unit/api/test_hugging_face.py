"""Zero-shot classification answers as transformers' own pipeline does, however the service is
configured.
"""

import base64
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient
from transformers import ZeroShotImageClassificationPipeline, pipeline

from serve_app.api.app import create_app
from serve_app.config.service import ServiceConfig, parse_config
from serve_app.demo import settings as demo_settings
from serve_app.demo.settings import demo_config, demo_labels
from serve_app.pipeline.local_tagger import LocalTagger
from tests.conftest import encoded, in_float32

DEMO = Path(demo_settings.__file__).parent
IMAGE = Image.open(DEMO / "samples" / "red-circle.jpg")
PICTURE = encoded(IMAGE)
CONTEXT_LENGTH = 16
"""Of the demo checkpoint; the pipeline assumes 64."""
CANDIDATES = ["blue star", "red circle", "green cross", "circle", "red"]
SETTINGS: list[dict[str, dict[str, Any]]] = [
    {},
    {"selection": {"include_labels": ["red", "circle"]}},
    {"selection": {"exclude_labels": ["red circle", "blue star"]}},
    {"selection": {"include_labels": ["red"], "exclude_labels": ["red", "circle"]}},
    {"selection": {"score": "logit"}},
    {"selection": {"score": "softmax"}},
    {"selection": {"score": "margin"}},
    {"selection": {"min_tags": 1, "parents": "suppress"}},
    {"plugin": {"confidence_threshold": 1.0}},
    {"plugin": {"max_tags": 1}},
    {"plugin": {"sort_by": "alphabetical", "include_raw_scores": True}},
]


def demo(
    selection: dict[str, Any] | None = None, plugin: dict[str, Any] | None = None
) -> ServiceConfig:
    """Return the demo's configuration with other settings."""
    siglip = {"model": "demo", "dtype": "float32", "confidence_threshold": 0.5} | (plugin or {})
    return parse_config(
        {"labels": demo_labels(), "selection": selection or {}, "plugins": {"siglip": siglip}}
    )


@pytest.fixture(scope="module")
def reference() -> Callable[[Sequence[str]], list[dict[str, Any]]]:
    """What transformers' pipeline gives for candidate labels, in the model's own context length."""
    pipe = pipeline("zero-shot-image-classification", model=str(DEMO / "checkpoint"))
    assert isinstance(pipe, ZeroShotImageClassificationPipeline)

    def run(labels: Sequence[str]) -> list[dict[str, Any]]:
        inputs = pipe.preprocess(
            IMAGE, list(labels), tokenizer_kwargs={"max_length": CONTEXT_LENGTH}
        )
        return pipe.postprocess(pipe.forward(inputs))

    return run


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    config = in_float32(demo_config())
    with TestClient(create_app(LocalTagger(config), config)) as client:
        yield client


def zero_shot(client: TestClient, labels: Any, **parameters: Any) -> list[dict[str, Any]]:
    """Return the answer for candidate labels, as the Python client asks."""
    body = {
        "inputs": base64.b64encode(PICTURE).decode(),
        "parameters": {"candidate_labels": labels, **parameters},
    }
    response = client.post("/hf", json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("changed", SETTINGS, ids=str)
def test_candidates_are_scored_whatever_the_service_selects(
    reference: Callable[[Sequence[str]], list[dict[str, Any]]], changed: dict[str, dict[str, Any]]
) -> None:
    """All of them, with the pipeline's probabilities, the best first."""
    config = demo(**changed)
    with TestClient(create_app(LocalTagger(config), config)) as client:
        found = zero_shot(client, CANDIDATES)
    expected = reference(CANDIDATES)
    assert [entry["label"] for entry in found] == [entry["label"] for entry in expected]
    assert [entry["score"] for entry in found] == pytest.approx(
        [entry["score"] for entry in expected], rel=1e-3
    )


@pytest.mark.parametrize("changed", SETTINGS[1:4], ids=str)
def test_labels_of_a_request_are_not_filtered_by_the_services_settings(
    changed: dict[str, dict[str, Any]],
) -> None:
    """Nor on /v1/tag; the filters hold for the service's own labels, and a request's filters for
    its labels.
    """
    config = demo(**changed)
    with TestClient(create_app(LocalTagger(config), config)) as client:
        body = {"labels": CANDIDATES, "confidence_threshold": "0"}
        found = client.post("/v1/tag", data=body, files={"image": PICTURE}).json()["tags"]
        assert {tag["label"] for tag in found} == set(CANDIDATES)
        found = client.post(
            "/v1/tag", data=body | {"exclude_labels": "red"}, files={"image": PICTURE}
        ).json()["tags"]
        assert {tag["label"] for tag in found} == set(CANDIDATES) - {"red"}
        own = client.post("/v1/tag?confidence_threshold=0&max_tags=99", content=PICTURE).json()[
            "tags"
        ]
        assert len(own) < len(demo_labels())


def test_labels_come_back_as_they_were_sent(
    client: TestClient, reference: Callable[[Sequence[str]], list[dict[str, Any]]]
) -> None:
    """Repeated ones, blanks around them and commas within them included."""
    labels = ["red, circle", " red circle", "blue", "red circle", "blue"]
    assert [entry["label"] for entry in zero_shot(client, labels)] == [
        entry["label"] for entry in reference(labels)
    ]
    assert [entry["label"] for entry in zero_shot(client, labels, top_k=2)] == [
        "red, circle",
        " red circle",
    ]


@pytest.mark.parametrize(
    "labels",
    [
        "red, blue,",
        "red,,blue",
        ["red", "blue", ""],
        ["red", " ", "blue"],
        '["red","blue"]',
        '["red","blue",""]',
    ],
)
def test_empty_labels_beside_others_are_dropped(client: TestClient, labels: Any) -> None:
    """A comma at the end of a text leaves one, here or in the client that split it."""
    assert [entry["label"] for entry in zero_shot(client, labels)] == ["red", "blue"]


@pytest.mark.parametrize("labels", ["", " ", ",", [], [""], "[]"])
def test_no_labels_are_refused(client: TestClient, labels: Any) -> None:
    """Rather than replaced by the service's own."""
    response = client.post(
        "/hf", json={"inputs": "AAAA", "parameters": {"candidate_labels": labels}}
    )
    assert (response.status_code, response.json()["error"]) == (
        400,
        "labels is empty; give at least one label.",
    )


def test_parameters_may_come_in_the_query(client: TestClient) -> None:
    """Beside raw bytes, and beside JSON; a single field is split at commas, a repeated one is
    not.
    """
    headers = {"content-type": "image/png"}

    def labels_of(query: list[tuple[str, str]]) -> list[str]:
        response = client.post("/hf", params=query, content=PICTURE, headers=headers)
        assert response.status_code == 200, response.text
        return [entry["label"] for entry in response.json()]

    assert labels_of([("candidate_labels", "blue,red")]) == ["red", "blue"]
    assert labels_of([("candidate_labels", "blue"), ("candidate_labels", "red, dark")]) == [
        "red, dark",
        "blue",
    ]
    assert labels_of([("candidate_labels", '["blue", "red, dark"]')]) == ["red, dark", "blue"]
    assert labels_of([("candidate_labels", "blue,red"), ("top_k", "1")]) == ["red"]
    assert len(labels_of([("top_k", "4")])) == 4
    response = client.post("/hf?candidate_label=a", content=PICTURE, headers=headers)
    assert response.status_code == 400
    assert "candidate_labels" in response.json()["error"]


def test_what_gateways_add_and_nulls_of_any_name_are_left_out(client: TestClient) -> None:
    """An API gateway's `?key=` is no parameter, and transformers' own parameters may be null."""
    response = client.post(
        "/hf?key=abc&api-version=2026-01-01&code=x",
        content=PICTURE,
        headers={"content-type": "image/png"},
    )
    assert response.status_code == 200, response.text
    parameters = {"candidate_labels": ["red"], "timeout": None, "hypothesis_template": None}
    inputs = base64.b64encode(PICTURE).decode()
    response = client.post("/hf", json={"inputs": inputs, "parameters": parameters})
    assert response.status_code == 200, response.text
    assert [entry["label"] for entry in response.json()] == ["red"]


def test_configured_logits_are_given_as_probabilities() -> None:
    """As by sigmoid, for the service's own labels too; logits only to a client that asks for no
    function.
    """
    config = demo({"score": "logit"})
    with TestClient(create_app(LocalTagger(config), config)) as client:
        plain = client.post("/hf", content=PICTURE).json()
        assert plain == client.post("/hf?function_to_apply=sigmoid", content=PICTURE).json()
        assert {entry["label"] for entry in plain} == {"red", "circle", "red circle"}
        assert all(0.5 <= entry["score"] <= 1 for entry in plain)
        assert client.post("/hf?function_to_apply=none", content=PICTURE).json()[0]["score"] > 1


def test_the_best_comes_first_whatever_the_service_sorts_by() -> None:
    """Clients take the first entry."""
    config = demo(plugin={"sort_by": "alphabetical", "confidence_threshold": 0.0})
    with TestClient(create_app(LocalTagger(config), config)) as client:
        scores = [entry["score"] for entry in client.post("/hf", content=PICTURE).json()]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("template", ["a photo", "{} or {}", "{label} {}"])
def test_a_template_without_one_place_for_the_label_is_refused(
    client: TestClient, template: str
) -> None:
    """In the words of its own parameter."""
    parameters = {"candidate_labels": ["a", "b"], "hypothesis_template": template}
    response = client.post("/hf", json={"inputs": "AAAA", "parameters": parameters})
    assert response.status_code == 400
    assert "hypothesis_template must contain {} exactly once" in response.json()["error"]
