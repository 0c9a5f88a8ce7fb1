"""Options and pictures are read alike by the client and by the service."""

import io
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from serve_app.api.parameters import TagParameters, query_fields, validated
from serve_app.client.images import read_image
from serve_app.client.options import MAX_QUERY_CHARACTERS, Options, as_query, fields_of
from serve_app.client.responses import pack_embedding, unpack_embedding
from serve_app.config.limits import Limits
from serve_app.errors import InvalidImage, SourceUnavailable
from serve_app.tagging.options import TagOptions, tag_options

ASKED = {
    "labels": ("red", "blue star"),
    "prompt_templates": ("a photo, of {label}", "{label}"),
    "vocabulary": "own",
    "confidence_threshold": 0.25,
    "max_tags": 5,
    "min_tags": 1,
    "score": "margin",
    "sort_by": "alphabetical",
    "parents": "propagate",
    "include_labels": ("a", "b"),
    "exclude_labels": ("c",),
    "include_categories": ("d",),
    "exclude_categories": ("e", "ü & ?"),
    "include_raw_scores": True,
    "quality": "high",
}


def test_the_client_knows_every_option_of_the_service() -> None:
    """Its names are those of `TagOptions` and of the HTTP face, and this test's example has them
    all.
    """
    assert (
        Options.__annotations__.keys() | {"returned", "encoding_format"}
        == TagParameters.model_fields.keys()
    )
    assert set(ASKED) == {"labels", "prompt_templates", *TagOptions._fields}
    assert set(Options.__optional_keys__) == set(ASKED)


def test_a_query_is_read_as_what_was_asked_for() -> None:
    """Every option crosses as it was given, blanks, signs and commas of templates included."""
    query = as_query(fields_of(ASKED))
    sent = httpx.Request("POST", "http://x", params=query).url.query
    request = Request({"type": "http", "query_string": sent, "headers": []})
    assert validated(TagParameters, query_fields(request)).options(Limits()) == tag_options(**ASKED)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "asked",
    [
        {"labels": ["red, dark"]},
        {"labels": []},
        {"labels": [""]},
        {"labels": [" red"]},
        {"labels": ["[red"]},
        {"labels": [" ", "red"]},
        {"exclude_labels": ['["red"]']},
        {"prompt_templates": ["[a photo] of {label}"]},
        {"labels": ["x" * 100] * (MAX_QUERY_CHARACTERS // 100)},
    ],
    ids=[
        "comma",
        "none",
        "empty",
        "blank",
        "array",
        "blank item",
        "array in a filter",
        "array in a template",
        "long",
    ],
)
def test_what_a_query_would_change_travels_as_json(asked: dict[str, list[str]]) -> None:
    """A comma would split a label, a bracket begin an array, a blank be lost, and a long address be
    cut off by a gateway.
    """
    assert as_query(fields_of(asked)) is None


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["labels", "prompt_templates", "include_labels", "exclude_categories"]),
    st.lists(st.text(max_size=8), max_size=4),
)
def test_any_list_that_travels_as_a_query_is_read_as_it_was(name: str, items: list[str]) -> None:
    """Whatever its items; what a query cannot hold goes by JSON."""
    query = as_query(fields_of({name: items}))
    if query is None:
        return
    sent = httpx.Request("POST", "http://x", params=query).url.query
    request = Request({"type": "http", "query_string": sent, "headers": []})
    assert getattr(validated(TagParameters, query_fields(request)), name) == (tuple(items) or None)


@pytest.mark.parametrize("name", sorted(Options.__optional_keys__))
def test_none_is_the_default(name: str) -> None:
    """For every option, as null is for the service."""
    assert fields_of({name: None}) == {}


def test_defaults_are_not_sent() -> None:
    """What is left out is the service's own setting; also what the command line leaves out as
    None.
    """
    assert fields_of(dict.fromkeys(Options.__optional_keys__)) == {}
    assert fields_of({"quality": "standard", "include_labels": (), "exclude_labels": ()}) == {}
    assert fields_of({"labels": "a,b", "include_raw_scores": False}) == {
        "labels": "a,b",
        "include_raw_scores": False,
    }


def test_an_unknown_option_is_a_mistake_of_the_program() -> None:
    """It is told by its name before anything is sent."""
    with pytest.raises(TypeError, match="lables"):
        fields_of({"lables": ["x"]})


def test_embeddings_cross_as_float32() -> None:
    """Base64 of little-endian numbers, by hand: 1.0 is 00 00 80 3f."""
    assert pack_embedding([1.0, -2.0]) == "AACAPwAAAMA="
    assert unpack_embedding("AACAPwAAAMA=") == (1.0, -2.0)
    with pytest.raises(ValueError, match="multiple of item size"):
        unpack_embedding("AACA")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
def test_a_picture_may_be_bytes_or_a_file(kind: type) -> None:
    """Whatever holds the bytes."""
    assert read_image(kind(b"picture")) == b"picture"


def test_a_picture_may_be_a_path(tmp_path: Path) -> None:
    """As text or as a path; one that is not there is told as such."""
    (tmp_path / "a.jpg").write_bytes(b"picture")
    assert read_image(tmp_path / "a.jpg") == read_image(str(tmp_path / "a.jpg")) == b"picture"
    with pytest.raises(SourceUnavailable, match=r"b\.jpg does not exist"):
        read_image(tmp_path / "b.jpg")


@pytest.mark.parametrize("nothing", [b"", io.BytesIO()])
def test_an_empty_picture_is_an_error_of_the_picture(nothing: object) -> None:
    """Not of the request, so that it loses only itself among others."""
    with pytest.raises(InvalidImage, match="empty"):
        read_image(nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [None, 5, io.StringIO("text"), object()])
def test_anything_else_is_no_picture(wrong: object) -> None:
    """Said as Python says it of a wrong type."""
    with pytest.raises(TypeError, match="an image must be a path, bytes or a file"):
        read_image(wrong)  # type: ignore[arg-type]


def test_the_client_loads_nothing_of_the_service() -> None:
    """No torch, no Ray, no FastAPI in a process that imports only the client."""
    heavy = "{'torch', 'transformers', 'ray', 'fastapi', 'starlette', 'PIL', 'huggingface_hub'}"
    program = f"import sys, serve_app.client; print(sorted({heavy} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )
