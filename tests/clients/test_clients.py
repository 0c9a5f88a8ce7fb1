"""Real client libraries against the running service, each with the calls that docs/api.md lists."""

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import huggingface_hub
import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from serve_app.api.app import create_app
from serve_app.config.service import parse_config
from serve_app.demo.settings import demo_labels
from serve_app.pipeline.local_tagger import LocalTagger
from tests.http_face import served

SAMPLES = Path(__file__).parents[2] / "serve_app" / "demo" / "samples"
HUGGING_FACE_JS = "@huggingface/inference@4.13.30"
RED_CIRCLE = SAMPLES / "red-circle.jpg"
WHITE_CROSS = SAMPLES / "white-cross.jpg"


def data_uri(path: Path) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"


@pytest.fixture(autouse=True)
def _hub_may_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests run with the hub switched off, which its client takes for every address."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture(scope="module")
def filtering_server() -> Iterator[str]:
    """The address of a service that selects few of its own labels, and scores them by logits."""
    plugin = {
        "model": "demo",
        "dtype": "float32",
        "confidence_threshold": 0.9,
        "max_tags": 1,
        "sort_by": "alphabetical",
    }
    selection = {
        "include_labels": ["red", "circle"],
        "exclude_labels": ["circle", "blue star"],
        "score": "logit",
    }
    config = parse_config(
        {
            "labels": demo_labels(),
            "selection": selection,
            "telemetry": {"request_log": "off"},
            "plugins": {"siglip": plugin},
        }
    )
    with served(create_app(LocalTagger(config), config)) as url:
        yield url


@pytest.fixture
def openai_client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


def test_hugging_face_zero_shot(server: str) -> None:
    """Own labels and template; every label comes back, the best first."""
    client = InferenceClient(model=f"{server}/hf")
    for image in (str(RED_CIRCLE), RED_CIRCLE.read_bytes()):
        found = client.zero_shot_image_classification(
            image,
            candidate_labels=["blue star", "red circle", "green cross"],
            hypothesis_template="a photo of a {}.",
        )
        assert found[0].label == "red circle"
        assert {entry.label for entry in found} == {"blue star", "red circle", "green cross"}
        assert found[0].score > 0.9 > found[-1].score


def test_hugging_face_zero_shot_of_a_service_that_filters(filtering_server: str) -> None:
    """Filters, thresholds and logits of the configuration are for the service's own labels: every
    candidate has its probability.
    """
    client = InferenceClient(model=f"{filtering_server}/hf")
    found = client.zero_shot_image_classification(
        str(RED_CIRCLE), candidate_labels=["blue star", "red circle", "red, dark", "circle"]
    )
    assert {entry.label for entry in found} == {"blue star", "red circle", "red, dark", "circle"}
    assert [entry.score for entry in found] == sorted(
        (entry.score for entry in found), reverse=True
    )
    assert all(0 <= entry.score <= 1 for entry in found)
    assert found[0].score > 0.9
    (own,) = client.image_classification(str(RED_CIRCLE))
    assert (own.label, own.score) == ("red", pytest.approx(1, abs=0.01))


def test_hugging_face_classification(server: str) -> None:
    """Raw bytes give the service's own tags; with parameters the best so many, by the function that
    is asked for.
    """
    client = InferenceClient(model=f"{server}/hf")
    assert {entry.label for entry in client.image_classification(str(RED_CIRCLE))} == {
        "red",
        "circle",
        "red circle",
    }
    best = client.image_classification(str(RED_CIRCLE), function_to_apply="softmax", top_k=5)
    assert len(best) == 5
    assert sum(entry.score for entry in best) <= 1 + 1e-5  # each is rounded
    logits = client.image_classification(str(RED_CIRCLE), function_to_apply="none", top_k=62)
    assert logits[0].score > 1
    assert logits[-1].score < 0


def test_hugging_face_errors_are_read(server: str) -> None:
    """The client raises with the status, and the body's sentence is there to be read."""
    with pytest.raises(HfHubHTTPError) as caught:
        InferenceClient(model=f"{server}/hf").image_classification(b"no picture")
    assert caught.value.response.status_code == 415
    assert "error" in caught.value.response.json()


@pytest.mark.parametrize("path", ["/hf", "/predict", "/"])
def test_hugging_face_js_form(server: str, path: str) -> None:
    """What huggingface.js and the endpoints toolkit post: inputs as an object."""
    body = {
        "inputs": {"image": base64.b64encode(RED_CIRCLE.read_bytes()).decode()},
        "parameters": {"candidate_labels": ["red", "blue"]},
    }
    assert [entry["label"] for entry in httpx.post(server + path, json=body).json()] == [
        "red",
        "blue",
    ]


def test_openai_embeddings_of_texts_and_images_in_one_list(openai_client: openai.OpenAI) -> None:
    """In order, of unit norm, and an image is nearest to what it shows."""
    inputs = [
        "this is a photo of red circle.",
        data_uri(WHITE_CROSS),
        "this is a photo of white cross.",
        data_uri(RED_CIRCLE),
    ]
    answer = openai_client.embeddings.create(model="demo", input=inputs)
    assert [entry.index for entry in answer.data] == [0, 1, 2, 3]
    rows = np.array([entry.embedding for entry in answer.data])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert rows[0] @ rows[3] > rows[0] @ rows[1]
    assert rows[2] @ rows[1] > rows[2] @ rows[3]


def test_openai_float_and_base64_are_the_same_numbers(
    openai_client: openai.OpenAI, server: str
) -> None:
    """The client asks for base64 unless told otherwise, and unpacks it."""
    packed = openai_client.embeddings.create(model="demo", input="red").data[0].embedding
    plain = (
        openai_client.embeddings.create(model="demo", input="red", encoding_format="float")
        .data[0]
        .embedding
    )
    np.testing.assert_allclose(packed, plain, atol=1e-5)
    raw = httpx.post(
        f"{server}/v1/embeddings", json={"input": "red", "encoding_format": "base64"}
    ).json()
    np.testing.assert_allclose(
        np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4"), plain, atol=1e-5
    )


def test_openai_embeddings_are_those_of_tags(openai_client: openai.OpenAI, server: str) -> None:
    """What /v1/embeddings gives of an image can be scored by /v1/score."""
    row = (
        openai_client.embeddings.create(model="demo", input=[data_uri(RED_CIRCLE)])
        .data[0]
        .embedding
    )
    tags = httpx.post(f"{server}/v1/score", json={"embeddings": [list(row)]}).json()["results"][0][
        "tags"
    ]
    assert {tag["label"] for tag in tags} == {"red", "circle", "red circle"}


def test_infinitys_modality_and_vllms_messages(openai_client: openai.OpenAI) -> None:
    """The same embedding by every form."""
    plain = (
        openai_client.embeddings.create(model="demo", input=[data_uri(RED_CIRCLE)])
        .data[0]
        .embedding
    )
    bare = base64.b64encode(RED_CIRCLE.read_bytes()).decode()
    by_modality = (
        openai_client.embeddings.create(
            model="demo", input=[bare], extra_body={"modality": "image"}
        )
        .data[0]
        .embedding
    )
    content = [{"type": "image_url", "image_url": {"url": data_uri(RED_CIRCLE)}}]
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": content}],
        "encoding_format": "float",
    }
    by_messages = (
        openai_client.post("/embeddings", body=body, cast_to=openai.types.CreateEmbeddingResponse)
        .data[0]
        .embedding
    )
    for other in (by_modality, by_messages):
        np.testing.assert_allclose(other, plain, atol=1e-5)


@pytest.mark.parametrize(
    "prefix",
    [
        " data:image/jpeg;base64,",
        "DATA:image/jpeg;base64,",
        "data:;base64,",
        "data:application/octet-stream;base64,",
    ],
)
def test_openai_takes_every_form_of_data_uri(openai_client: openai.OpenAI, prefix: str) -> None:
    """Each is the same image."""
    odd = prefix + base64.b64encode(RED_CIRCLE.read_bytes()).decode()
    rows = [
        entry.embedding
        for entry in openai_client.embeddings.create(
            model="demo", input=[data_uri(RED_CIRCLE), odd]
        ).data
    ]
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)


def test_openai_null_is_the_default(openai_client: openai.OpenAI) -> None:
    """Programs that pass every option on send null for those that nobody set."""
    nulls = {"encoding_format": None, "modality": None, "dimensions": None, "user": None}
    body = {"model": "demo", "input": "red"}
    plain, with_nulls = (
        openai_client.post("/embeddings", body=each, cast_to=object)
        for each in (body, body | nulls)
    )
    assert plain == with_nulls


def test_openai_errors_are_read(openai_client: openai.OpenAI) -> None:
    """The client's own exceptions, with our code and a sentence; dimensions are refused with the
    reason.
    """
    cases = [
        ({"input": "red", "dimensions": 7}, "cannot be shortened"),
        ({"input": []}, "input is empty"),
        ({"input": [[1, 2, 3]]}, "tokens are not taken"),
        ({"input": ["red", "data:image/png;base64,AAAA"]}, r"input[1]"),
        (
            {"input": ["https://example.org/a.jpg"], "extra_body": {"modality": "image"}},
            "not fetched",
        ),
        ({"input": " "}, "A text is empty"),
        ({"input": "data:text/plain,hello"}, "base64 data URI"),
        ({"input": "https://example.org/a.jpg"}, "modality: image"),
        ({"input": base64.b64encode(RED_CIRCLE.read_bytes()).decode()}, "base64 of an image"),
    ]
    for arguments, said in cases:
        with pytest.raises(openai.APIStatusError) as caught:
            openai_client.embeddings.create(model="demo", **arguments)  # type: ignore[arg-type]
        assert caught.value.status_code in (400, 415)
        assert said in caught.value.message
        assert caught.value.code in ("invalid_request", "unsupported_image")


def test_openai_lists_the_model(openai_client: openai.OpenAI) -> None:
    """One model, under the name that answers carry."""
    assert [model.id for model in openai_client.models.list()] == ["demo"]


def test_open_inference_protocol(server: str) -> None:
    """What KServe's probes ask, and the error of another model's name."""
    for path, expected in (
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
    ):
        assert httpx.get(server + path).json() == expected
    metadata = httpx.get(f"{server}/v2/models/demo").json()
    assert (metadata["name"], metadata["inputs"][0]["datatype"]) == ("demo", "BYTES")
    assert httpx.get(f"{server}/v2/models/demo/ready").json() == {"name": "demo", "ready": True}
    other = httpx.get(f"{server}/v2/models/google/other")
    assert (other.status_code, set(other.json())) == (404, {"error"})


def test_vocabularies_are_listed_and_shown(server: str) -> None:
    """Names, sizes and fingerprints; one with its tags; an unknown one is not found."""
    (card,) = httpx.get(f"{server}/v1/vocabularies").json()["vocabularies"]
    assert (card["name"], card["default"], card["tags"], card["calibrated"]) == (
        "default",
        True,
        62,
        False,
    )
    assert card["confidence_threshold"] == 0.5
    shown = httpx.get(f"{server}/v1/vocabularies/default").json()
    assert [tag["label"] for tag in shown["tags"]][:2] == ["red", "orange"]
    assert httpx.get(f"{server}/v1/vocabularies/x").json()["error"]["code"] == "unknown_vocabulary"


def test_bodies_that_are_nothing_are_refused_in_each_shape(server: str) -> None:
    """Half of a JSON object, a list, nothing."""
    for path in ("/v1/embeddings", "/hf"):
        for body in (b"{", b"[]", b"", json.dumps({"inputs": 3, "input": 3}).encode()):
            response = httpx.post(
                server + path, content=body, headers={"Content-Type": "application/json"}
            )
            assert response.status_code == 400
            assert "error" in response.json()


@pytest.mark.skipif(shutil.which("npm") is None, reason="node is not installed")
def test_hugging_face_js(server: str, tmp_path: Path) -> None:
    """The JavaScript client from npm, on node: both of its calls."""
    install = [
        "npm",
        "install",
        "--silent",
        "--no-fund",
        "--no-audit",
        "--prefix",
        str(tmp_path),
        HUGGING_FACE_JS,
    ]
    installed = subprocess.run(install, timeout=120, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"{HUGGING_FACE_JS} could not be installed: {installed.stderr[-200:]}")
    shutil.copy(Path(__file__).with_name("hugging_face.mjs"), tmp_path)
    command = ["node", str(tmp_path / "hugging_face.mjs"), f"{server}/hf", str(RED_CIRCLE)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert [entry["label"] for entry in found["zeroShot"]] == ["red circle", "blue star"]
    assert {entry["label"] for entry in found["plain"]} == {"red", "circle", "red circle"}
