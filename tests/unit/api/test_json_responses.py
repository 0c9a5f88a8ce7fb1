"""JSON responses written in slices: the same bytes as in one step, within their limit."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import JSONResponse
from starlette.testclient import TestClient
from starlette.types import Message

from serve_app.api.app import create_app
from serve_app.api.json_responses import (
    CHUNK_BYTES,
    INLINE_VALUES,
    ITEMS_AT_ONCE,
    json_response,
    write_json,
)
from serve_app.config.service import parse_config
from serve_app.errors import PayloadTooLarge
from serve_app.pipeline.local_tagger import LocalTagger
from tests.conftest import encoded, random_picture

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]))
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(VALUES, st.integers(0, 3 * ITEMS_AT_ONCE))
def test_slices_are_the_bytes_of_one_step(value: Any, repeats: int) -> None:
    """Whatever is in the lists and objects."""
    content = {"one": value, "many": [value] * (repeats if len(str(value)) < 100 else 3)}
    whole = {**content, "lazy": [value, value], "none": []}
    content |= {"lazy": iter([value, value]), "none": iter([])}
    from_one_step = bytes(JSONResponse(whole).body)
    assert b"".join(write_json(content)) == from_one_step


def test_a_response_of_exactly_the_limit_is_sent() -> None:
    """And one of a byte more is refused, in slices or in one step."""
    content = {"a": ["text"] * 1_000}
    num_bytes = len(b"".join(write_json(content)))
    for num_values in (1, INLINE_VALUES + 1):
        asyncio.run(json_response(content, num_values, num_bytes))
        with pytest.raises(PayloadTooLarge, match="Lower max_tags"):
            asyncio.run(json_response(content, num_values, num_bytes - 1))


def test_a_large_response_is_built_no_further_than_its_limit() -> None:
    """What comes after the limit is never asked for."""
    built = 0

    def items() -> Iterator[str]:
        nonlocal built
        for _ in range(1_000_000):
            built += 1
            yield "x" * 100

    with pytest.raises(PayloadTooLarge):
        write_json({"a": items()}, 10_000)
    assert built < 110


async def test_a_large_response_says_its_length_and_comes_in_chunks() -> None:
    """Each of which is freed once it is sent."""
    content = {"a": ["text"] * 50_000}
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError

    response = await json_response(content, 50_000, None)
    await response({"type": "http"}, receive, send)
    start, *chunks = sent
    headers = dict(start["headers"])
    body = b"".join(chunk["body"] for chunk in chunks)
    assert json.loads(body) == content
    assert int(headers[b"content-length"]) == len(body)
    assert headers[b"content-type"] == b"application/json"
    assert [chunk["more_body"] for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert max(len(chunk["body"]) for chunk in chunks) < CHUNK_BYTES + 4_096


@pytest.fixture(scope="module")
def client(tiny: Callable[[str], Path]) -> Iterator[TestClient]:
    config = parse_config(
        {
            "labels": [f"label {i}" for i in range(3_000)],
            "limits": {"max_response_bytes": 100_000},
            "plugins": {"siglip": {"model": str(tiny("siglip2")), "confidence_threshold": 0.0}},
        }
    )
    with TestClient(create_app(LocalTagger(config), config)) as client:
        yield client


def test_numbers_that_do_not_fit_are_sent_in_base64(client: TestClient) -> None:
    """200 embeddings of 64 numbers: over 100,000 bytes as text, 70,000 in base64."""
    body: dict[str, Any] = {"input": [f"text {i}" for i in range(200)]}
    refused = client.post("/v1/embeddings", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "payload_too_large")
    assert "base64" in refused.json()["error"]["message"]
    sent = client.post("/v1/embeddings", json=body | {"encoding_format": "base64"})
    assert len(sent.json()["data"]) == 200


def test_tags_that_do_not_fit_are_refused_or_fail_their_line(client: TestClient) -> None:
    """3,000 tags are 413, and an error of the image where lines are streamed; 1,500 are sent."""
    image = encoded(random_picture(40, 40))
    assert client.post("/v1/tag?max_tags=3000", content=image).status_code == 413
    fits = client.post("/v1/tag?max_tags=1500", content=image)
    assert len(fits.json()["tags"]) == 1_500
    lines = {"Accept": "application/x-ndjson"}
    line, last = client.post(
        "/v1/tag?max_tags=3000", content=image, headers=lines
    ).text.splitlines()
    assert json.loads(line)["error"]["code"] == "payload_too_large"
    assert json.loads(last)["failed"] == 1
    line, last = client.post(
        "/v1/tag?max_tags=1500", content=image, headers=lines
    ).text.splitlines()
    assert [tag["label"] for tag in json.loads(line)["tags"]] == [
        tag["label"] for tag in fits.json()["tags"]
    ]


def test_large_vocabularies_are_shown_whole(client: TestClient) -> None:
    """3,000 tags, whatever the limit of other responses is."""
    tags = client.get("/v1/vocabularies/default").json()["tags"]
    assert [tag["label"] for tag in tags] == [f"label {i}" for i in range(3_000)]
