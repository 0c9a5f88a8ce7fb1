"""The HTTP face over a LocalTagger on a tiny checkpoint: transports, answers, refusals."""

import asyncio
import base64
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from serve_app import errors
from serve_app.api.app import create_app
from serve_app.config.service import ServiceConfig, parse_config
from serve_app.pipeline.local_tagger import LocalTagger
from serve_app.pipeline.tagged_image import ImageInput, TaggedImage
from serve_app.pipeline.tagger import ModelCard
from serve_app.tagging.options import TagOptions
from tests.conftest import encoded, random_picture

PICTURE = encoded(random_picture(60, 40), "JPEG")
BASE64 = base64.b64encode(PICTURE).decode()
BROKEN = PICTURE[:200]
LIMITS = {
    "max_body_bytes": 200_000,
    "max_image_bytes": 100_000,
    "max_image_pixels": 10_000,
    "max_images_per_request": 4,
    "max_labels_per_request": 5,
}


@pytest.fixture(scope="module")
def config(tiny: Callable[[str], Path]) -> ServiceConfig:
    plugin = {
        "model": str(tiny("siglip")),
        "dtype": "float32",
        "confidence_threshold": 0.0,
        "max_tags": 2,
        "include_raw_scores": True,
    }
    return parse_config(
        {"labels": ["cat", "dog", "red_car"], "limits": LIMITS, "plugins": {"siglip": plugin}}
    )


@pytest.fixture(scope="module")
def client(config: ServiceConfig) -> Iterator[TestClient]:
    with TestClient(
        create_app(LocalTagger(config), config), raise_server_exceptions=False
    ) as client:
        yield client


@pytest.fixture(scope="module")
def tags(client: TestClient) -> list[dict[str, object]]:
    """What the picture is tagged with."""
    return client.post("/v1/tag", content=PICTURE).json()["tags"]


def test_answer_is_the_contract_of_the_plugin(client: TestClient) -> None:
    """Tags with label and confidence, the best first, and the host's model, version and time."""
    answer = client.post("/v1/tag", content=PICTURE).json()
    assert set(answer) == {
        "tags",
        "vocabulary",
        "vocabulary_fingerprint",
        "score",
        "model",
        "version",
        "inference_time_ms",
    }
    assert (answer["vocabulary"], answer["score"]) == ("default", "sigmoid")
    assert len(answer["tags"]) == 2
    confidences = [tag["confidence"] for tag in answer["tags"]]
    assert confidences == sorted(confidences, reverse=True)
    assert all(0 <= c <= 1 for c in confidences)
    assert all(set(tag) == {"label", "confidence", "raw_score"} for tag in answer["tags"])


@pytest.mark.parametrize(
    "content_type",
    ["image/jpeg", "application/octet-stream", "application/x-www-form-urlencoded", ""],
)
def test_raw_bodies_of_any_type_are_pictures(
    client: TestClient, tags: list[object], content_type: str
) -> None:
    """Also what `curl --data-binary` calls a form."""
    headers = {"Content-Type": content_type} if content_type else {}
    assert client.post("/v1/tag", content=PICTURE, headers=headers).json()["tags"] == tags


@pytest.mark.parametrize(
    "body",
    [
        {"image": BASE64},
        {"image": f"data:image/jpeg;base64,{BASE64}"},
        {"image": "\n".join(BASE64[at : at + 76] for at in range(0, len(BASE64), 76))},
    ],
)
def test_json_takes_base64_and_data_uris(
    client: TestClient, tags: list[object], body: dict[str, str]
) -> None:
    """Plain, wrapped at 76 characters, or a data URI."""
    assert client.post("/v1/tag", json=body).json()["tags"] == tags


def test_one_form_file_is_answered_like_one_picture(client: TestClient, tags: list[object]) -> None:
    """`curl -F image=@photo.jpg` gets tags, not a list."""
    assert (
        client.post("/v1/tag", files={"image": ("photo.jpg", PICTURE, "image/jpeg")}).json()["tags"]
        == tags
    )


@pytest.mark.parametrize("transport", ["json", "form"])
def test_many_pictures_are_answered_in_order_with_their_own_errors(
    client: TestClient, tags: list[object], transport: str
) -> None:
    """The broken second one has an error, the others their tags, whatever the transport."""
    if transport == "json":
        response = client.post(
            "/v1/tag", json={"images": [BASE64, base64.b64encode(BROKEN).decode(), "###", BASE64]}
        )
    else:
        response = client.post(
            "/v1/tag",
            files=[
                ("image", (f"{n}.jpg", data))
                for n, data in enumerate([PICTURE, BROKEN, b"", PICTURE])
            ],
        )
    assert response.status_code == 200
    results = response.json()["results"]
    assert [("tags" in r) for r in results] == [True, False, False, True]
    for at in (0, 3):
        assert [tag["label"] for tag in results[at]["tags"]] == [tag["label"] for tag in tags]
        assert [tag["raw_score"] for tag in results[at]["tags"]] == pytest.approx(
            [tag["raw_score"] for tag in tags], abs=1e-3
        )
    assert results[1]["error"]["code"] == "invalid_image"
    assert results[2]["error"]["code"] == "invalid_request"


def test_a_list_of_one_is_answered_with_a_list(client: TestClient) -> None:
    """`images` always gives `results`."""
    assert len(client.post("/v1/tag", json={"images": [BASE64]}).json()["results"]) == 1


@pytest.mark.parametrize("how", ["query", "repeated", "json", "json text", "form"])
def test_own_labels_are_scored_and_come_back_as_written(client: TestClient, how: str) -> None:
    """Labels by query, form or JSON, as a list or with commas; case and underscores come back."""
    match how:
        case "query":
            response = client.post("/v1/tag?labels=Zebra,old_boat&max_tags=9", content=PICTURE)
        case "repeated":
            response = client.post(
                "/v1/tag?labels=Zebra&labels=old_boat&max_tags=9", content=PICTURE
            )
        case "json":
            response = client.post(
                "/v1/tag", json={"image": BASE64, "labels": ["Zebra", "old_boat"], "max_tags": 9}
            )
        case "json text":
            response = client.post(
                "/v1/tag", json={"image": BASE64, "labels": "Zebra, old_boat", "max_tags": 9}
            )
        case _:
            response = client.post(
                "/v1/tag", files={"f": PICTURE}, data={"labels": "Zebra,old_boat", "max_tags": "9"}
            )
    assert {tag["label"] for tag in response.json()["tags"]} == {"Zebra", "old_boat"}


def test_threshold_number_and_templates_are_the_requests(client: TestClient) -> None:
    """Every parameter changes the answer."""
    all_tags = client.post("/v1/tag?max_tags=9", content=PICTURE).json()["tags"]
    assert len(all_tags) == 3
    middle = all_tags[1]["confidence"]
    above = client.post(
        f"/v1/tag?max_tags=9&confidence_threshold={middle * 0.999}", content=PICTURE
    ).json()["tags"]
    assert [tag["label"] for tag in above] == [tag["label"] for tag in all_tags[:2]]
    other = client.post(
        "/v1/tag",
        params={"prompt_templates": "a drawing of {label}", "max_tags": 9},
        content=PICTURE,
    ).json()["tags"]
    assert other != all_tags


JSON = {"Content-Type": "application/json"}
REFUSALS = [
    ("no body", b"", {}, "", 400, "invalid_request"),
    ("not a picture", b"hello", {}, "", 415, "unsupported_image"),
    ("truncated", BROKEN, {}, "", 422, "invalid_image"),
    ("too many pixels", encoded(Image.new("1", (200, 100))), {}, "", 422, "image_too_large"),
    ("too many bytes", b"x" * 100_001, {}, "", 413, "payload_too_large"),
    ("no JSON", b"{", JSON, "", 400, "invalid_request"),
    ("JSON list", b"[]", JSON, "", 400, "invalid_request"),
    ("deep JSON", b"[" * 90_000, JSON, "", 400, "invalid_request"),
    ("no image", b"{}", JSON, "", 400, "invalid_request"),
    ("both", json.dumps({"image": "a", "images": []}).encode(), JSON, "", 400, "invalid_request"),
    ("empty list", b'{"images": []}', JSON, "", 400, "invalid_request"),
    (
        "too many images",
        json.dumps({"images": [BASE64] * 5}).encode(),
        JSON,
        "",
        413,
        "payload_too_large",
    ),
    ("no base64", b'{"image": "###"}', JSON, "", 400, "invalid_request"),
    ("image is a number", b'{"image": 3}', JSON, "", 400, "invalid_request"),
    (
        "broken form",
        b"--x\r\n",
        {"Content-Type": "multipart/form-data"},
        "",
        400,
        "invalid_request",
    ),
    ("unknown parameter", PICTURE, {}, "?treshold=1", 400, "invalid_request"),
    ("threshold out of bounds", PICTURE, {}, "?confidence_threshold=1.5", 400, "invalid_request"),
    ("threshold no number", PICTURE, {}, "?confidence_threshold=nan", 400, "invalid_request"),
    ("no tags", PICTURE, {}, "?max_tags=0", 400, "invalid_request"),
    ("too many labels", PICTURE, {}, "?labels=a,b,c,d,e,f", 400, "invalid_request"),
    ("label without a word", PICTURE, {}, "?labels=...", 400, "invalid_request"),
    ("no labels", PICTURE, {}, "?labels=", 400, "invalid_request"),
    ("template without a place", PICTURE, {}, "?prompt_templates=x", 400, "invalid_request"),
]


@pytest.mark.parametrize(
    ("content", "headers", "query", "status", "code"),
    [r[1:] for r in REFUSALS],
    ids=[r[0] for r in REFUSALS],
)
def test_refusals_have_a_status_a_code_and_a_sentence(
    client: TestClient, content: bytes, headers: dict[str, str], query: str, status: int, code: str
) -> None:
    """Every bad request is refused for what is wrong with it."""
    response = client.post(f"/v1/tag{query}", content=content, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    message = response.json()["error"]["message"]
    assert len(message) > 15
    assert "/" not in message.replace("/docs", "").replace("and/or", "")


def test_unknown_parameter_names_the_nearest(client: TestClient) -> None:
    """A slip of the pen is told with what was meant."""
    assert (
        "confidence_threshold"
        in client.post("/v1/tag?confidence_treshold=0", content=PICTURE).json()["error"]["message"]
    )


def test_body_without_a_length_is_cut_while_it_streams(client: TestClient) -> None:
    """A chunked body is refused when it grows too large, and not read to its end."""
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(10_000):
            sent += 65_536
            yield b"x" * 65_536

    assert client.post("/v1/tag", content=endless()).status_code == 413


def test_form_over_the_body_limit_is_refused(client: TestClient) -> None:
    """Files that are each small enough may still be too much together, or one too large alone."""
    big = b"x" * 90_000
    assert client.post("/v1/tag", files=[("f", big), ("f", big), ("f", big)]).status_code == 413
    assert (
        client.post("/v1/tag", files={"f": b"x" * 150_000}).json()["error"]["code"]
        == "payload_too_large"
    )
    assert client.post("/v1/tag", files=[("f", PICTURE)] * 5).status_code == 413


def test_paths_and_methods_that_are_not_there_are_refused_alike(client: TestClient) -> None:
    """404 and 405 have the same shape as every other error."""
    assert client.get("/nothing").json()["error"]["code"] == "not_found"
    assert client.get("/v1/tag").json()["error"]["code"] == "method_not_allowed"
    assert client.get("/v1/tag").headers["allow"] == "POST"
    assert client.put("/").headers["allow"] == "GET, HEAD, POST"


def test_state_says_what_is_served(client: TestClient, config: ServiceConfig) -> None:
    """Alive, ready, and every fact of the model."""
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}
    card = client.get("/v1/model").json()
    assert card["model"] == Path(config.siglip.model).name  # and not where it lies
    assert (card["family"], card["image_size"], card["context_length"], card["labels"]) == (
        "siglip",
        32,
        16,
        3,
    )
    assert (card["dtype"], card["attention"], card["device"], card["quantization"]) == (
        "float32",
        "sdpa",
        card["device"],
        "none",
    )
    assert (card["vocabulary"], card["vocabularies"], len(card["vocabulary_fingerprint"])) == (
        "default",
        ["default"],
        16,
    )


def test_documentation_needs_no_other_host(client: TestClient) -> None:
    """/docs and its assets come from here; the OpenAPI document names every route and refusal."""
    page = client.get("/docs").text
    assert "https://" not in page
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert client.get(f"/docs/assets/{asset}").status_code == 200
    paths = client.get("/openapi.json").json()["paths"]
    native = {
        "/v1/tag",
        "/v1/score",
        "/v1/model",
        "/v1/config",
        "/v1/vocabularies",
        "/v1/vocabularies/{name}",
        "/healthz",
        "/readyz",
    }
    dialects = {
        "/v1/embeddings",
        "/v1/models",
        "/hf",
        "/predict",
        "/",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/{model}",
    }
    assert set(paths) == native | dialects
    assert {"200", "400", "413", "415", "422", "429", "503", "504"} <= set(
        paths["/v1/tag"]["post"]["responses"]
    )


@pytest.mark.parametrize("path", ["/v1/tag", "/hf", "/v1/embeddings"])
def test_examples_of_the_documentation_can_be_sent_as_they_stand(
    client: TestClient, path: str
) -> None:
    """Whoever presses the button of /docs gets an answer."""
    document = client.get("/openapi.json").json()
    example = document["paths"][path]["post"]["requestBody"]["content"]["application/json"][
        "example"
    ]
    assert client.post(path, json=example).status_code == 200


class Failing:
    """A tagger of which every call fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def tag(
        self, images: Sequence[ImageInput], options: TagOptions
    ) -> tuple[TaggedImage, ...]:
        raise self.error

    async def describe(self) -> ModelCard:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        errors.Overloaded("Full."),
        errors.Unavailable("Wait."),
        RuntimeError("/secret/path 10.0.0.1"),
    ],
)
def test_failures_of_the_service_show_nothing_internal(
    config: ServiceConfig, error: Exception
) -> None:
    """429 and 503 say when to come back; an unexpected error says nothing of itself."""
    with TestClient(create_app(Failing(error), config), raise_server_exceptions=False) as client:
        for response in (client.post("/v1/tag", content=PICTURE), client.get("/readyz")):
            assert "secret" not in response.text
            expected = {"Overloaded": 429, "Unavailable": 503}.get(type(error).__name__, 500)
            assert response.status_code == expected
            assert ("retry-after" in response.headers) == (expected != 500)


def lines_of(client: TestClient, **request: Any) -> list[dict[str, Any]]:
    """Return the lines of a streamed answer."""
    with client.stream(
        "POST", "/v1/tag", headers={"Accept": "application/x-ndjson"}, **request
    ) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
        return [json.loads(line) for line in answer.iter_lines()]


def test_many_images_are_streamed_line_by_line(client: TestClient, tags: list[object]) -> None:
    """Each with its index, its own tags or error and what it was scored by; the last line says that
    all were given.
    """
    *lines, last = lines_of(
        client, json={"images": [BASE64, base64.b64encode(BROKEN).decode(), "###", BASE64]}
    )
    by_index = {line["index"]: line for line in lines}
    assert set(by_index) == {0, 1, 2, 3}
    assert by_index[0]["tags"] == by_index[3]["tags"] == tags
    assert by_index[0]["vocabulary"] == "default"
    assert by_index[1]["error"]["code"] == "invalid_image"
    assert by_index[2]["error"]["code"] == "invalid_request"
    assert last.pop("inference_time_ms") > 0
    assert last == {"done": True, "images": 4, "failed": 2}


def test_lines_come_in_the_order_in_which_images_are_done(config: ServiceConfig) -> None:
    """A picture that takes long does not hold those behind it back, and one that is done is sent
    before the next is.
    """
    release: list[asyncio.Event] = []

    class Slow(LocalTagger):
        async def tag(
            self, images: Sequence[ImageInput], options: TagOptions
        ) -> tuple[TaggedImage, ...]:
            if images[0] == BROKEN:
                release.append(asyncio.Event())
                await release[0].wait()
                return await super().tag(images, options)
            answer = await super().tag(images, options)
            asyncio.get_running_loop().call_later(0.05, release[0].set)
            return answer

    with TestClient(create_app(Slow(config), config)) as slow:
        lines = lines_of(slow, json={"images": [base64.b64encode(BROKEN).decode(), BASE64]})
    assert [line.get("index") for line in lines] == [1, 0, None]


def test_a_stream_ends_within_the_time_of_a_request(config: ServiceConfig) -> None:
    """Images that are not done by then have their own error, and the last line still comes."""

    class Stuck(LocalTagger):
        async def tag(
            self, images: Sequence[ImageInput], options: TagOptions
        ) -> tuple[TaggedImage, ...]:
            await asyncio.sleep(30)
            raise AssertionError

    short = config.model_copy(
        update={"serving": config.serving.model_copy(update={"request_timeout_s": 0.2})}
    )
    with TestClient(create_app(Stuck(config), short)) as stuck:
        *lines, last = lines_of(stuck, json={"images": [BASE64] * 3})
    assert [line["error"]["code"] for line in lines] == ["deadline_exceeded"] * 3
    assert last["failed"] == 3


def test_paths_that_are_not_there_are_told_in_the_shape_of_who_asks(client: TestClient) -> None:
    """Also 404 and 405, for clients that read only their own."""
    assert set(client.get("/v2/nothing").json()) == {"error"}
    assert isinstance(client.get("/v2/nothing").json()["error"], str)
    assert client.get("/hf").json()["error_code"] == "method_not_allowed"
    assert client.get("/v1/embeddings").json()["error"]["type"] == "invalid_request_error"


def test_a_request_that_cannot_be_read_is_refused_before_a_stream_begins(
    client: TestClient,
) -> None:
    """With its status, as without streaming."""
    answer = client.post(
        "/v1/tag", json={"images": [BASE64] * 5}, headers={"Accept": "application/x-ndjson"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")


def test_images_by_url_are_refused_unless_fetching_is_on(client: TestClient) -> None:
    """Each in its place, with the sentence that says what to do; the other images of the request
    are tagged.
    """
    answer = client.post("/v1/tag", json={"images": ["https://example.org/a.jpg", BASE64]}).json()
    assert "Send the image itself" in answer["results"][0]["error"]["message"]
    assert answer["results"][1]["tags"]
    openai = client.post(
        "/v1/embeddings", json={"input": "https://example.org/a.jpg", "modality": "image"}
    )
    assert (openai.status_code, openai.json()["error"]["code"]) == (400, "invalid_request")
