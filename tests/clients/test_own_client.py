"""Our own clients against the running service, both with the same calls; the folder's samples are
named by what they show.
"""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app import __version__
from serve_app.client import (
    AsyncClient,
    Client,
    ModelCard,
    Tagged,
    TaggedFile,
    VocabularyCard,
    VocabularyTag,
)
from serve_app.errors import (
    InvalidImage,
    InvalidRequest,
    RequestError,
    SourceUnavailable,
    Unavailable,
    UnknownVocabulary,
    UnsupportedImage,
)
from serve_app.pipeline import tagger
from serve_app.tagging.vocabulary import Tag
from tests.service import free_port

SAMPLES = Path(__file__).parents[2] / "serve_app" / "demo" / "samples"
RED_CIRCLE = SAMPLES / "red-circle.jpg"
WHITE_CROSS = SAMPLES / "white-cross.jpg"
Ask = Callable[..., Any]


def ask_blocking(url: str, method: str, *arguments: Any, **options: Any) -> Any:
    with Client(url, max_tries=1) as client:
        answer = getattr(client, method)(*arguments, **options)
        return list(answer) if method == "tag_files" else answer


def ask_awaited(url: str, method: str, *arguments: Any, **options: Any) -> Any:
    async def run() -> Any:
        async with AsyncClient(url, max_tries=1) as client:
            answer = getattr(client, method)(*arguments, **options)
            return [file async for file in answer] if method == "tag_files" else await answer

    return asyncio.run(run())


@pytest.fixture(params=[ask_blocking, ask_awaited])
def ask(request: pytest.FixtureRequest, server: str) -> Ask:
    """Return a function that calls a method of each client in turn."""
    return lambda method, *arguments, **options: request.param(
        server, method, *arguments, **options
    )


def labels(tagged: Tagged) -> set[str]:
    return {tag.label for tag in tagged.tags}


@pytest.mark.parametrize("open_as", [str, Path, Path.read_bytes, lambda path: path.open("rb")])
def test_a_picture_is_tagged_however_it_is_given(ask: Ask, open_as: Callable[[Path], Any]) -> None:
    """A path, bytes or an open file; the answer says what it was scored against."""
    image = open_as(RED_CIRCLE)
    tagged = ask("tag", image)
    if hasattr(image, "close"):
        image.close()
    assert labels(tagged) == {"red", "circle", "red circle"}
    assert (tagged.vocabulary, tagged.score, tagged.model, tagged.version, tagged.views) == (
        "default",
        "sigmoid",
        "demo",
        __version__,
        1,
    )
    assert tagged.embedding is None
    assert tagged.inference_time_ms > 0


def test_options_reach_the_service(ask: Ask) -> None:
    """Own labels, raw scores, tiles, order and number."""
    tagged = ask(
        "tag",
        RED_CIRCLE,
        labels=["red", "blue", "circle"],
        confidence_threshold=0,
        include_raw_scores=True,
        sort_by="alphabetical",
    )
    assert [tag.label for tag in tagged.tags] == ["blue", "circle", "red"]
    assert tagged.vocabulary is None
    for tag in tagged.tags:
        assert tag.confidence == pytest.approx(1 / (1 + np.exp(-tag.raw_score)), rel=1e-4)
    assert ask("tag", RED_CIRCLE, quality="high").views > 1
    assert len(ask("tag", RED_CIRCLE, max_tags=1).tags) == 1


def test_labels_that_no_query_can_hold_are_scored_as_they_are(ask: Ask) -> None:
    """A comma within a label, and more labels than an address may be long."""
    assert labels(ask("tag", RED_CIRCLE, labels=["red, dark", "blue"], confidence_threshold=0)) == {
        "red, dark",
        "blue",
    }
    many = [f"a label with the number {number}" for number in range(200)]
    assert labels(ask("tag", RED_CIRCLE, labels=many, confidence_threshold=0, max_tags=200)) == set(
        many
    )


def test_one_bad_picture_of_many_loses_only_itself(ask: Ask) -> None:
    """In the order given, over several requests, each failure as its own error."""
    images = [
        RED_CIRCLE,
        b"no picture",
        "nowhere.jpg",
        WHITE_CROSS,
        b"",
        RED_CIRCLE.read_bytes()[:500],
    ]
    red, text, nowhere, white, empty, cut = ask("tag_many", images, images_per_request=2)
    assert labels(red) == {"red", "circle", "red circle"}
    assert labels(white) == {"white", "cross", "white cross"}
    assert [type(error) for error in (text, nowhere, empty, cut)] == [
        UnsupportedImage,
        SourceUnavailable,
        InvalidImage,
        InvalidImage,
    ]
    assert text.request_id
    assert ask("tag_many", []) == []


def test_stored_embeddings_are_scored_as_the_pictures_were(ask: Ask) -> None:
    """As tuples or as a NumPy array; (D,) of unit norm."""
    embeddings = [
        ask("tag", image, return_embedding=True).embedding for image in (RED_CIRCLE, WHITE_CROSS)
    ]
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(1, abs=1e-5)
    assert ask("tag_many", [WHITE_CROSS], return_embedding=True)[0].embedding == pytest.approx(
        embeddings[1], abs=1e-5
    )
    for given in (embeddings, np.array(embeddings, np.float32)):
        assert [labels(tagged) for tagged in ask("score", given)] == [
            {"red", "circle", "red circle"},
            {"white", "cross", "white cross"},
        ]


def test_more_embeddings_than_one_request_takes_are_scored(ask: Ask) -> None:
    """In several requests, all in order."""
    embedding = ask("tag", RED_CIRCLE, return_embedding=True).embedding
    found = ask("score", [embedding] * 1_100, labels=["red", "blue"])
    assert [labels(tagged) for tagged in found] == [{"red"}] * 1_100


def test_texts_are_embedded_beside_what_they_say(ask: Ask) -> None:
    """Each picture is nearest to its own text."""
    texts = np.array(
        ask("embed", ["this is a photo of red circle.", "this is a photo of white cross."])
    )
    images = np.array(
        [ask("tag", image, return_embedding=True).embedding for image in (RED_CIRCLE, WHITE_CROSS)]
    )
    assert (images @ texts.T).argmax(axis=1).tolist() == [0, 1]


def test_the_state_is_read(ask: Ask) -> None:
    """The model, its vocabularies, one of them with its tags, and that it is ready."""
    assert ask("ready") is True
    model = ask("model")
    (card,) = ask("vocabularies")
    assert (model.model, model.vocabularies, model.vocabulary_fingerprint) == (
        "demo",
        ("default",),
        card.fingerprint,
    )
    one = ask("vocabulary", "default")
    assert (one.name, one.default, one.fingerprint, len(one.tags)) == (
        "default",
        True,
        card.fingerprint,
        card.tags,
    )
    assert "red circle" in {tag.label for tag in one.tags}


def test_answers_have_every_field_of_the_service() -> None:
    """A field that the service gains is missed here before a client's user misses it."""
    assert set(ModelCard.model_fields) == {field.name for field in fields(tagger.ModelCard)}
    assert set(VocabularyCard.model_fields) == {
        field.name for field in fields(tagger.VocabularyCard)
    }
    assert set(VocabularyTag.model_fields) == set(Tag.model_fields)


@pytest.mark.parametrize(
    ("arguments", "options", "expected", "status"),
    [
        (("vocabulary", "x/y z"), {}, RequestError, 404),
        (("vocabulary", "nothing"), {}, UnknownVocabulary, 404),
        (("tag", RED_CIRCLE), {"vocabulary": "nothing"}, UnknownVocabulary, 404),
        (("tag", RED_CIRCLE), {"max_tags": 0}, InvalidRequest, 400),
        (("tag", RED_CIRCLE), {"labels": []}, InvalidRequest, 400),
        (("tag", b"no picture"), {}, UnsupportedImage, 415),
        (("score", [[1.0, 2.0]]), {}, InvalidRequest, 400),
        (("embed", [""]), {}, InvalidRequest, 400),
        (("tag", "nowhere.jpg"), {}, SourceUnavailable, None),
    ],
)
def test_what_is_wrong_is_raised_as_its_class(
    ask: Ask, arguments: Any, options: Any, expected: type, status: int | None
) -> None:
    """With the service's sentence, its status and the request's id, where a request was made."""
    with pytest.raises(expected) as caught:
        ask(*arguments, **options)
    assert caught.value.status == status
    assert (caught.value.request_id is None) == (status is None)


def test_nobody_at_the_address_is_one_sentence(ask: Ask) -> None:
    """With the address, and not ready."""
    address = f"http://127.0.0.1:{free_port()}"
    for run in (ask_blocking, ask_awaited):
        assert run(address, "ready") is False
        with pytest.raises(
            Unavailable, match=f"Cannot connect to {address}; is the service running there?"
        ):
            run(address, "model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The samples and one file that is no picture."""
    shutil.copytree(SAMPLES, tmp_path / "pictures")
    (tmp_path / "pictures" / "broken.jpg").write_bytes(b"no picture")
    return tmp_path / "pictures"


@pytest.mark.parametrize(
    ("concurrency", "in_order"), [(1, False), (4, False), (4, True), (50, True)]
)
def test_a_folder_is_tagged_and_one_bad_picture_loses_only_itself(
    ask: Ask, folder: Path, concurrency: int, in_order: bool
) -> None:
    """Every file comes once, with the tags of its name or with its error."""
    found: list[TaggedFile] = ask(
        "tag_files", folder, concurrency=concurrency, in_order=in_order, max_tags=20
    )
    assert sorted(file.path for file in found) == sorted(folder.iterdir())
    if in_order:
        assert [file.path for file in found] == sorted(folder.iterdir())
    for file in found:
        if file.path.name == "broken.jpg":
            assert isinstance(file.outcome, UnsupportedImage)
        else:
            said = {part.replace("-", " ") for part in file.path.stem.split("-and-")}
            assert said <= labels(file.outcome)


def test_files_are_read_when_their_turn_comes(server: str, folder: Path) -> None:
    """Only so many as run at the same time have been asked for when the first outcome comes, and no
    more after it is left.
    """
    taken: list[Path] = []

    def files() -> Iterator[Path]:
        for _ in range(50):
            taken.append(RED_CIRCLE)
            yield RED_CIRCLE

    with Client(server) as client:
        found = client.tag_files(files(), concurrency=3)
        next(found)
        found.close()
    assert 3 <= len(taken) <= 2 * 3


async def test_a_run_that_is_left_ends_its_tasks(server: str) -> None:
    """Nothing of an asynchronous run goes on after it is closed."""
    async with AsyncClient(server) as client:
        found = client.tag_files([RED_CIRCLE] * 30, concurrency=5)
        assert labels((await anext(found)).outcome) == {"red", "circle", "red circle"}  # type: ignore[arg-type]
        await found.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}
