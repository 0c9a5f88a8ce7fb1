"""Optional fields of every endpoint, found in the OpenAPI document: null and an empty value answer
as leaving them out does.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.api.app import create_app
from serve_app.api.openapi import EXAMPLE_IMAGE
from serve_app.api.text_fields import NEVER_EMPTY
from serve_app.config.service import parse_config
from serve_app.pipeline.local_tagger import LocalTagger

BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/tag": [{"image": EXAMPLE_IMAGE}, {"images": [EXAMPLE_IMAGE], "labels": ["cat", "boat"]}],
    "/v1/score": [{"embeddings": [[0.1] * 64]}],
    "/v1/embeddings": [{"input": ["a cat"]}, {"messages": [{"role": "user", "content": "a cat"}]}],
    "/hf": [
        {"inputs": EXAMPLE_IMAGE},
        {"inputs": {"image": EXAMPLE_IMAGE}, "parameters": {"candidate_labels": ["cat", "boat"]}},
    ],
    "/predict": [{"inputs": EXAMPLE_IMAGE}],
    "/": [{"inputs": EXAMPLE_IMAGE}],
}
"""Requests that are answered, by path."""


@pytest.fixture(scope="module")
def client(tiny: Callable[[str], Path]) -> Iterator[TestClient]:
    plugin = {"model": str(tiny("siglip2")), "dtype": "float32", "confidence_threshold": 0.0}
    config = parse_config({"labels": ["cat", "dog"], "plugins": {"siglip": plugin}})
    with TestClient(
        create_app(LocalTagger(config), config), raise_server_exceptions=False
    ) as client:
        yield client


@pytest.fixture(scope="module")
def operations(client: TestClient) -> dict[str, dict[str, Any]]:
    """Every operation with a body, by path."""
    paths = client.get("/openapi.json").json()["paths"]
    return {path: methods["post"] for path, methods in paths.items() if "post" in methods}


def answer(client: TestClient, path: str, **request: Any) -> tuple[int, Any]:
    """Return the status and the body of a response, without the time that it took."""
    response = client.post(path, **request)
    content = response.json()
    if isinstance(content, dict):
        content.pop("inference_time_ms", None)
    return response.status_code, content


def test_every_endpoint_with_a_body_is_tried(operations: dict[str, dict[str, Any]]) -> None:
    """An endpoint that is added needs a request here."""
    assert set(operations) == set(BODIES)


@pytest.mark.parametrize("path", BODIES)
def test_null_in_a_json_body_is_the_default(
    client: TestClient, operations: dict[str, dict[str, Any]], path: str
) -> None:
    """For every field that the document does not require; the document says so too."""
    schema = operations[path]["requestBody"]["content"]["application/json"]["schema"]
    optional = schema["properties"].keys() - set(schema.get("required", ()))
    assert optional
    for name in optional:
        kinds = schema["properties"][name].get("anyOf")
        assert kinds is None or {"type": "null"} in kinds, name
        for body in BODIES[path]:
            without = {key: value for key, value in body.items() if key != name}
            assert answer(client, path, json=without | {name: None}) == answer(
                client, path, json=without
            ), name


@pytest.mark.parametrize("place", ["parameters", "inputs"])
def test_null_in_hugging_faces_parameters_is_the_default(
    client: TestClient, operations: dict[str, dict[str, Any]], place: str
) -> None:
    """Beside the inputs, and among them, where null does not hide a parameter beside them."""
    names = {parameter["name"] for parameter in operations["/hf"]["parameters"]}
    assert names >= {"candidate_labels", "top_k"}
    labels = {"candidate_labels": ["cat", "boat"]}
    for name in names:
        for given in ({}, labels):
            body: dict[str, Any] = {"inputs": {"image": EXAMPLE_IMAGE}, "parameters": dict(given)}
            if place == "parameters":
                body["parameters"].pop(name, None)
            expected = answer(client, "/hf", json=body)
            body[place][name] = None
            assert answer(client, "/hf", json=body) == expected
            assert expected[0] == 200


@pytest.mark.parametrize("path", BODIES)
def test_an_empty_query_parameter_is_the_default(
    client: TestClient, operations: dict[str, dict[str, Any]], path: str
) -> None:
    """Except for labels, where the service's own would be a surprise."""
    body = BODIES[path][0]
    for name in {parameter["name"] for parameter in operations[path].get("parameters", ())}:
        status, content = answer(client, path, params={name: ""}, json=body)
        assert (
            (status, content) == answer(client, path, json=body)
            if name not in NEVER_EMPTY
            else status == 400
        ), name


def test_null_in_an_unknown_field_is_refused(client: TestClient) -> None:
    """It is probably misspelt."""
    status, content = answer(client, "/v1/tag", json={"image": EXAMPLE_IMAGE, "max_tag": None})
    assert status == 400
    assert "did you mean max_tags" in content["error"]["message"]


def test_null_in_a_required_field_is_refused(client: TestClient) -> None:
    """As the missing field that it is."""
    assert (
        "embeddings is missing."
        in answer(client, "/v1/score", json={"embeddings": None})[1]["error"]["message"]
    )
    assert "inputs is missing." in answer(client, "/hf", json={"inputs": None})[1]["error"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/tag", {"image": 3}),
        ("/v1/tag", {"images": "x"}),
        ("/v1/tag", {"image": "AAAA", "labels": {}}),
        ("/v1/tag", {"image": "AAAA", "include_labels": ",".join(["a"] * 1_001)}),
        ("/hf", {"inputs": 3}),
        ("/v1/score", {"embeddings": 3}),
        ("/v1/embeddings", {"input": "a", "messages": {}}),
    ],
)
def test_messages_about_types_show_no_type_of_python(
    client: TestClient, path: str, body: dict[str, Any]
) -> None:
    """Clients send JSON, and know neither tuples nor the service's classes."""
    status, content = answer(client, path, json=body)
    assert status == 400
    assert not {"tuple", "dict", "instance", "longtext"} & set(
        re.findall(r"\w+", str(content).lower())
    )
