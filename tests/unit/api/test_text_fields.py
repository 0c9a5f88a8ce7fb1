"""Lists in query strings, forms and texts: the same labels by every way of sending them."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from serve_app.api.bodies import TagCall, read_tag_call
from serve_app.api.parameters import ScoreParameters, query_fields, validated
from serve_app.api.sources import image_sources
from serve_app.api.text_fields import MAX_TEXT_ITEMS, text_fields
from serve_app.config.service import parse_config
from serve_app.errors import InvalidRequest

SOURCES = image_sources(parse_config({"labels": ["cat"], "plugins": {"siglip": {"model": "demo"}}}))
LISTS = [
    "labels",
    "prompt_templates",
    "include_labels",
    "exclude_labels",
    "include_categories",
    "exclude_categories",
]
LABELS = st.lists(
    st.text(st.characters(codec="utf-8"), max_size=12)
    | st.sampled_from(['["a"]', "a,b", "[", "a, b ", "]"]),
    max_size=8,
)


def received(request: httpx.Request) -> Request:
    """Return a request as the service gets it from a server."""
    body = request.read()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(name.lower(), value) for name, value in request.headers.raw]
    return Request(
        {"type": "http", "method": "POST", "query_string": request.url.query, "headers": headers},
        receive,
    )


def call_of(**request: Any) -> TagCall:
    """Return what the service reads of a request that httpx writes."""
    sent = httpx.Request("POST", "http://service/v1/tag", **request)
    return asyncio.run(read_tag_call(received(sent), SOURCES))


def field_of(call: TagCall, name: str) -> Any:
    """Return an option of a call; labels and templates are in its vocabulary."""
    in_vocabulary = name in ("labels", "prompt_templates")
    return getattr(call.options.vocabulary if in_vocabulary else call.options, name)


def outcome(**request: Any) -> tuple[str, ...] | str | None:
    """Return the labels that the service reads, or why it refuses them."""
    try:
        return call_of(**request).options.vocabulary.labels
    except InvalidRequest as error:
        return error.message


@settings(max_examples=100, deadline=None)
@given(LABELS)
@example(["red, dark", "blue"])
@example(["red"])
@example(['["red"', '"blue"]'])
@example(["red", ""])
def test_labels_are_the_same_by_every_way_of_sending_them(labels: list[str]) -> None:
    """As JSON, as a JSON array in one field of a form or of the query, and as a repeated field of
    either.
    """
    file = {"image": b"bytes"}
    expected = outcome(json={"image": "AAAA", "labels": labels})
    array = json.dumps(labels)
    assert outcome(json={"image": "AAAA", "labels": array}) == expected
    assert outcome(data={"labels": array}, files=file) == expected
    assert outcome(params={"labels": array}, content=b"bytes") == expected
    if len(labels) > 1 and all(
        label.strip() for label in labels
    ):  # empty inputs of a form are left out
        assert outcome(data={"labels": labels}, files=file) == expected
        assert outcome(params={"labels": labels}, content=b"bytes") == expected


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("transport", ["query", "form", "json"])
def test_every_list_may_be_a_json_array_in_one_text(name: str, transport: str) -> None:
    """Items keep their commas; white space around the brackets does not matter."""
    items = ["red, dark {label}", "blue {label}"]
    text = f" {json.dumps(items)}\n"
    match transport:
        case "query":
            call = call_of(params={name: text}, content=b"bytes")
        case "form":
            call = call_of(data={name: text}, files={"image": b"bytes"})
        case _:
            call = call_of(json={"image": "AAAA", name: text})
    assert field_of(call, name) == tuple(items)


@pytest.mark.parametrize("name", LISTS)
def test_a_repeated_field_is_taken_as_it_is(name: str) -> None:
    """In a form, in the query, and once in each of them."""
    items = ["red, dark {label}", '["blue {label}"]']
    file = {"image": b"bytes"}
    assert field_of(call_of(data={name: items}, files=file), name) == tuple(items)
    assert field_of(call_of(params={name: items}, content=b"bytes"), name) == tuple(items)
    both = call_of(params={name: items[0]}, data={name: items[1]}, files=file)
    assert field_of(both, name) == tuple(items)


@pytest.mark.parametrize(
    "text",
    [
        '["red"',
        "['red','blue']",
        "[red, blue]",
        "[red] car",
        '["red",]',
        '["red"] x',
        "[1,2]",
        '["a",null]',
        '[["a"]]',
        "[" * 60_000,
        "[" + "1" * 5_000,
    ],
    ids=range(11),
)
@pytest.mark.parametrize("name", LISTS)
def test_a_text_that_only_begins_like_an_array_is_refused(name: str, text: str) -> None:
    """It is neither split at its commas nor taken as one label; the sentence says what to write."""
    with pytest.raises(
        InvalidRequest, match=rf"^{name}: .*must be a JSON array of strings, such as"
    ):
        call_of(data={name: text}, files={"image": b"bytes"})


def test_commas_split_a_single_text_only() -> None:
    """Blanks around items and empty items are dropped; a template is never split."""
    assert call_of(
        params={"labels": " red , dark blue,,"}, content=b"bytes"
    ).options.vocabulary.labels == (
        "red",
        "dark blue",
    )
    assert call_of(
        params={"prompt_templates": "a, {label}"}, content=b"bytes"
    ).options.vocabulary.prompt_templates == ("a, {label}",)
    assert call_of(
        json={"image": "AAAA", "prompt_templates": "a, {label}"}
    ).options.vocabulary.prompt_templates == ("a, {label}",)
    assert call_of(params={"labels": '"red",blue'}, content=b"bytes").options.vocabulary.labels == (
        '"red"',
        "blue",
    )


@pytest.mark.parametrize(
    "name",
    sorted(
        {field.alias or name for name, field in ScoreParameters.model_fields.items()} - {"labels"}
    ),
)
@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_value_means_the_same_as_leaving_the_field_out(name: str, value: str) -> None:
    """As the empty inputs of an HTML form are sent."""
    assert (
        call_of(data={name: value}, files={"image": b"bytes"}).options
        == call_of(files={"image": b"bytes"}).options
    )
    assert (
        call_of(params={name: value}, content=b"bytes").options == call_of(content=b"bytes").options
    )
    assert name not in text_fields([(name, value)], ScoreParameters)


@pytest.mark.parametrize("value", ["", " ", ",", "[]"])
def test_empty_labels_are_refused(value: str) -> None:
    """The service's own labels would be a surprise."""
    for request in (
        {"data": {"labels": value}, "files": {"image": b"bytes"}},
        {"params": {"labels": value}, "content": b"bytes"},
    ):
        assert outcome(**request) == "labels is empty; give at least one label."


def test_empty_values_beside_others_are_dropped() -> None:
    """A browser sends every input of a form, also those that were left empty."""
    assert call_of(
        data={"labels": ["cat", "", " "]}, files={"image": b"bytes"}
    ).options.vocabulary.labels == ("cat",)
    query = [("include_labels", ""), ("include_labels", "a, b")]
    assert text_fields(query, ScoreParameters) == {"include_labels": ["a, b"]}
    assert (
        outcome(data={"labels": ["", " "]}, files={"image": b"bytes"})
        == "labels is empty; give at least one label."
    )


def test_an_unknown_field_is_refused_even_if_it_is_empty() -> None:
    """It is probably misspelt."""
    with pytest.raises(InvalidRequest, match="did you mean max_tags"):
        call_of(data={"max_tag": ""}, files={"image": b"bytes"})


def test_an_image_in_a_text_field_of_a_form_is_refused() -> None:
    """With what to do instead."""
    with pytest.raises(InvalidRequest, match="Send the image as a file"):
        call_of(
            data={"image": "data:image/png;base64,AAAA", "labels": "a"}, files={"other": b"bytes"}
        )


def test_arrays_in_texts_have_as_many_items_as_texts_with_commas() -> None:
    """The bound is counted in items."""
    many = json.dumps(["a"] * (MAX_TEXT_ITEMS + 1))
    request = Request(
        {
            "type": "http",
            "query_string": httpx.QueryParams({"labels": many}).__str__().encode(),
            "headers": [],
        }
    )
    with pytest.raises(InvalidRequest, match="at most 4,000 items"):
        validated(ScoreParameters, query_fields(request))
