"""Hostile bodies: each is refused or answered, and none stops the event loop or takes much
memory.
"""

import base64
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.types import ASGIApp

from serve_app.api.app import create_app
from serve_app.config.service import parse_config
from serve_app.graph.preprocessor import SWITCH_INTERVAL_S
from serve_app.pipeline.local_tagger import LocalTagger
from tests.hostile.driving import CHUNK_BYTES, send_request

MIB = 2**20
MAX_GAP_S = 0.25
"""The aim is 0.02 s. Before bodies were read in slices, these took 0.3 to 11 s."""
MAX_PEAK_BYTES = 160 * MIB
"""Growth while a body of up to 64 MiB is read; before, up to 1.5 GB."""
WIDTH = 64
FORM = "multipart/form-data; boundary=X"


def part(name: str, data: bytes, filename: str = "") -> bytes:
    """Return one part of a form."""
    file = f'; filename="{filename}"' if filename else ""
    head = f'--X\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
    return head.encode() + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    """Return a form of such parts."""
    return b"".join(parts) + b"--X--\r\n"


def bitmap(side: int) -> bytes:
    """Return an image of three bytes a pixel."""
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 90).convert("RGB").save(buffer, "BMP")
    return buffer.getvalue()


def base64_row() -> str:
    """Return an embedding in base64."""
    row = np.random.default_rng(1).normal(size=WIDTH).astype("<f4")
    return base64.b64encode(row.tobytes()).decode()


def rows_of_numbers(num_bytes: int) -> bytes:
    """Return a list of embeddings as numbers."""
    row = json.dumps([0.123456] * WIDTH).encode()
    return b'{"embeddings":[' + b",".join([row] * (num_bytes // len(row))) + b"]}"


@pytest.fixture(scope="module")
def app(tiny: Callable[[str], Path]) -> Iterator[ASGIApp]:
    config = parse_config(
        {
            "labels": ["cat", "dog"],
            "limits": {"max_response_bytes": 2 * MIB},
            "plugins": {"siglip": {"model": str(tiny("siglip2")), "confidence_threshold": 0.0}},
            "telemetry": {"request_log": "off"},
        }
    )
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    yield create_app(LocalTagger(config), config)
    sys.setswitchinterval(before)


REFUSED_EARLY: dict[str, tuple[str, Callable[[], bytes], str, int]] = {
    "3 million unknown keys": (
        "/v1/tag",
        lambda: b"{" + b",".join(b'"k%d":1' % i for i in range(3 * MIB)) + b"}",
        "application/json",
        400,
    ),
    "8 million times the same key": (
        "/v1/tag",
        lambda: b"{" + b'"k":1,' * (8 * MIB) + b'"k":1}',
        "application/json",
        400,
    ),
    "15 million labels in a list": (
        "/v1/tag",
        lambda: b'{"image":"AAAA","labels":[' + b'"a",' * 15_000_000 + b'"a"]}',
        "application/json",
        400,
    ),
    "15 million labels in a field": (
        "/v1/tag",
        lambda: form(part("labels", b"a," * 15_000_000)),
        FORM,
        413,
    ),
    "63 MiB of open lists": (
        "/v1/tag",
        lambda: b'{"image":' + b"[" * (63 * MIB),
        "application/json",
        400,
    ),
    "open lists and no object": ("/v1/score", lambda: b"[" * (63 * MIB), "application/json", 400),
    "12 million objects in each other": (
        "/hf",
        lambda: b'{"a":' * (12 * MIB),
        "application/json",
        400,
    ),
    "a row of 31 million numbers": (
        "/v1/score",
        lambda: b'{"embeddings":[[' + b"1," * (31 * MIB) + b"1]]}",
        "application/json",
        400,
    ),
    "200,000 rows of numbers": (
        "/v1/score",
        lambda: rows_of_numbers(60 * MIB),
        "application/json",
        413,
    ),
    "a million tokens": (
        "/v1/embeddings",
        lambda: b'{"input":[' + b"1," * MIB + b"1]}",
        "application/json",
        413,
    ),
    "an integer of 60 million digits": (
        "/v1/tag",
        lambda: b'{"max_tags":' + b"1" * (60 * MIB) + b"}",
        "application/json",
        400,
    ),
    "an exponent of 60 million digits": (
        "/v1/tag",
        lambda: b'{"confidence_threshold":1e' + b"9" * (60 * MIB) + b"}",
        "application/json",
        400,
    ),
    "60 MiB of blank space": (
        "/v1/tag",
        lambda: b"{" + b" " * (60 * MIB) + b"}",
        "application/json",
        400,
    ),
    "a million form fields": (
        "/v1/tag",
        lambda: form(part("a", b"b") * MIB),
        FORM,
        400,
    ),
    "a form header of 60 MiB": (
        "/v1/tag",
        lambda: b"--X\r\nA: " + b"a" * (60 * MIB),
        FORM,
        400,
    ),
}


@pytest.mark.parametrize("name", REFUSED_EARLY)
async def test_bodies_are_refused_at_the_first_item_too_many(app: ASGIApp, name: str) -> None:
    """Less than 3 MiB of it are read, and the event loop goes on."""
    path, make, content_type, status = REFUSED_EARLY[name]
    outcome = await send_request(app, path, make(), content_type, announces_length=False)
    assert outcome.status == status
    assert b"invalid_request" in outcome.body or b"payload_too_large" in outcome.body
    assert outcome.read < 3 * MIB
    assert outcome.longest_gap_s < MAX_GAP_S
    assert outcome.peak_bytes < MAX_PEAK_BYTES


READ_WHOLE: dict[str, tuple[str, Callable[[], bytes], str, int]] = {
    "15 million labels in one text": (
        "/v1/tag",
        lambda: b'{"image":"AAAA","labels":"' + b"a," * 15_000_000 + b'"}',
        "application/json",
        400,
    ),
    "one text of 60 MiB": (
        "/v1/tag",
        lambda: b'{"image":"' + b"A" * (60 * MIB) + b'"}',
        "application/json",
        413,
    ),
    "a label of 60 MiB": (
        "/v1/tag",
        lambda: b'{"image":"AAAA","labels":["' + b"A" * (60 * MIB) + b'"]}',
        "application/json",
        400,
    ),
    "30 million escaped quotes": (
        "/v1/tag",
        lambda: b'{"image":"' + b'\\"' * (30 * MIB) + b'"}',
        "application/json",
        413,
    ),
    "9 million escaped letters": (
        "/v1/tag",
        lambda: b'{"image":"' + b"\\u0041" * (9 * MIB) + b'"}',
        "application/json",
        415,
    ),
    "invalid UTF-8 at the end": (
        "/v1/tag",
        lambda: b'{"image":"' + b"A" * (20 * MIB) + b'\xff"}',
        "application/json",
        400,
    ),
    "a text that does not end": (
        "/v1/embeddings",
        lambda: b'{"input":"' + b"A" * (60 * MIB),
        "application/json",
        400,
    ),
    "64 large images in base64": (
        "/v1/tag",
        lambda: json.dumps({"images": [base64.b64encode(bitmap(480)).decode()] * 64}).encode(),
        "application/json",
        200,
    ),
    "64 large images in a form": (
        "/v1/tag",
        lambda: form(*[part("image", bitmap(480), "a.bmp")] * 64),
        FORM,
        200,
    ),
    "1,024 embeddings as numbers": (
        "/v1/score",
        lambda: json.dumps({"embeddings": [[0.123456789] * WIDTH] * 1_024}).encode(),
        "application/json",
        200,
    ),
}


@pytest.mark.parametrize("name", READ_WHOLE)
async def test_large_bodies_do_not_stop_the_event_loop(app: ASGIApp, name: str) -> None:
    """They are read to their end, and take at most 2.5 times the memory of the largest body."""
    path, make, content_type, status = READ_WHOLE[name]
    outcome = await send_request(app, path, make(), content_type)
    assert outcome.status == status, outcome.body[:200]
    assert outcome.longest_gap_s < MAX_GAP_S
    assert outcome.peak_bytes < MAX_PEAK_BYTES


LARGE_IMAGE = base64.b64encode(bitmap(480)).decode()
DATA_URI = f"data:image/bmp;base64,{LARGE_IMAGE}"
DIALECTS = {
    "Hugging Face's text": ("/hf", {"inputs": LARGE_IMAGE}, 200),
    "Hugging Face's object": ("/hf", {"inputs": {"image": DATA_URI}}, 200),
    "OpenAI's data URI": ("/v1/embeddings", {"input": DATA_URI}, 200),
    "OpenAI's modality": ("/v1/embeddings", {"input": [LARGE_IMAGE], "modality": "image"}, 200),
    "Jina's object": ("/v1/embeddings", {"input": [{"image": LARGE_IMAGE}, "a text"]}, 200),
    "vLLM's messages": (
        "/v1/embeddings",
        {"messages": [{"content": [{"type": "image_url", "image_url": {"url": DATA_URI}}]}]},
        200,
    ),
    "a large text": ("/v1/embeddings", {"input": ["a" * 900_000]}, 400),
    "a large text in an object": ("/v1/embeddings", {"input": [{"text": LARGE_IMAGE}]}, 400),
    "a large text as a number": ("/v1/score", {"embeddings": [LARGE_IMAGE]}, 400),
}


@pytest.mark.parametrize("name", DIALECTS)
async def test_large_texts_are_images_in_every_dialect(app: ASGIApp, name: str) -> None:
    """And refused where an image cannot be meant."""
    path, content, status = DIALECTS[name]
    outcome = await send_request(app, path, json.dumps(content).encode())
    assert outcome.status == status, outcome.body[:300]
    assert status == 200 or b"invalid_request" in outcome.body


async def test_texts_that_take_much_memory_are_refused(app: ASGIApp) -> None:
    """One emoji makes each letter of a text take four bytes, so memory is counted and not bytes."""
    text = b'"' + "😀".encode() + b"a" * 60_000 + b'"'
    body = b'{"input":[' + b",".join([text] * 1_000) + b"]}"
    outcome = await send_request(app, "/v1/embeddings", body)
    assert (outcome.status, outcome.code) == (413, "payload_too_large")
    assert outcome.peak_bytes < 60 * MIB


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (b"labels=a&" * 7_000, b"more than 2,000 fields"),
        (b"&" * 60_000, b"more than 2,000 fields"),
        (b"labels=" + b"a," * 30_000, b"at most 4,000 items"),
        (b"labels=" + b"a," * 1_500, b"There are 1,500 labels"),
    ],
)
async def test_long_queries_are_counted_before_they_are_split(
    app: ASGIApp, query: bytes, message: bytes
) -> None:
    """64 KB of labels are refused, whatever separates them, and repeated ones count."""
    outcome = await send_request(app, "/v1/tag", bitmap(30), "image/bmp", query=query)
    assert (outcome.status, outcome.code) == (400, "invalid_request")
    assert message in outcome.body
    assert outcome.cpu_s < MAX_GAP_S


def scores(max_tags: int) -> bytes:
    """Return a request to score 1,024 embeddings against 1,000 labels."""
    body = {"embeddings": [base64_row()] * 1_024, "labels": [f"label {i}" for i in range(1_000)]}
    return json.dumps(body | {"confidence_threshold": 0, "max_tags": max_tags}).encode()


async def test_a_response_that_would_be_too_large_is_refused(app: ASGIApp) -> None:
    """200 tags of each of 1,024 embeddings; the sentence says what to change."""
    outcome = await send_request(app, "/v1/score", scores(max_tags=200))
    assert (outcome.status, outcome.code) == (413, "payload_too_large")
    assert b"max_tags" in outcome.body


async def test_a_large_response_is_sent_in_chunks(app: ASGIApp) -> None:
    """20 tags of each of 1,024 embeddings are whole JSON, in chunks of about 64 KiB."""
    outcome = await send_request(app, "/v1/score", scores(max_tags=20))
    results = json.loads(outcome.body)["results"]
    assert outcome.status == 200
    assert [len(result["tags"]) for result in results] == [20] * 1_024
    assert len(outcome.body) > 8 * CHUNK_BYTES
    assert outcome.largest_chunk < 2 * CHUNK_BYTES
    assert outcome.longest_gap_s < MAX_GAP_S
