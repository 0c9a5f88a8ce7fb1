"""What `POST /v1/embeddings` takes for an image and what for a text; nothing that is meant as an
image is embedded as a text.
"""

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serve_app.api.dialects.inputs import Item, read_items
from serve_app.api.json_bodies import JsonReader
from serve_app.api.json_values import JsonBounds
from serve_app.api.long_texts import LONG_TEXT_BYTES, LongText
from serve_app.api.sources import unpack_image
from serve_app.config.limits import Limits
from serve_app.errors import InvalidRequest
from tests.conftest import encoded, random_picture

PICTURE = encoded(random_picture(60, 40), "JPEG")
BASE64 = base64.b64encode(PICTURE).decode()
FORMATS = {
    kind: base64.b64encode(encoded(random_picture(20, 20), kind)).decode()
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF")
}
LARGE = base64.b64encode(encoded(Image.new("RGB", (400, 400)), "BMP")).decode()
"""More than one JSON string may have before it becomes a `LongText`."""
PREFIXES = [
    "data:image/jpeg;base64,",
    "DATA:IMAGE/JPEG;BASE64,",
    " data:image/jpeg;base64,",
    "\n\tData:image/jpeg;base64,",
    "data:;base64,",
    "data:application/octet-stream;base64,",
    "data:text/plain;base64,",
    "data:image/svg+xml;charset=utf-8;base64,",
    'data:image/jpeg;name="a b.jpg";base64,',
    "data:image/jpeg; base64,",
]


def item(value: Any, modality: Any = None) -> Item:
    """Return how one input is read."""
    (found,) = read_items([value], None, modality, Limits())
    return found


def as_received(text: str) -> str | LongText:
    """Return a text as it comes out of a JSON body."""
    value = JsonReader(JsonBounds()).finish(json.dumps({"input": text}).encode())["input"]
    assert isinstance(value, LongText) == (len(text) > LONG_TEXT_BYTES)
    return value


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("modality", [None, "text", "image"])
@pytest.mark.parametrize("data", [BASE64, LARGE], ids=["short", "long"])
def test_every_base64_data_uri_is_an_image(prefix: str, modality: str | None, data: str) -> None:
    """Whatever its media type, case, parameters and the white space before it; its bytes are the
    image's.
    """
    found = item(as_received(prefix + data), modality)
    assert found.text is None
    assert found.image is not None
    assert unpack_image(found.image, 10**6) == base64.b64decode(data)


@pytest.mark.parametrize(
    "text",
    [
        "data:,hello",
        "data:text/plain,hello",
        "data:image/svg+xml,<svg/>",
        "Data:image/png",
        " data:image/png;hex,00",
        "data:",
        "data:base64,AAAA",
    ],
)
@pytest.mark.parametrize("modality", [None, "text"])
def test_other_data_uris_are_refused(text: str, modality: str | None) -> None:
    """With how to embed them as a text; then they are embedded as one."""
    with pytest.raises(InvalidRequest, match=r'^input\[0\]: .*base64 data URI.*send \{"text"'):
        item(text, modality)
    assert item({"text": text}) == Item(text=text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http://example.org/a.jpg", "modality: image"),
        (" HTTPS://example.org/a.jpg?x=1\n", "modality: image"),
        ("file:///photos/a.jpg", "begins with file:"),
        ("blob:https://example.org/5f1b", "begins with blob:"),
        ("blob:null/5f1b", "begins with blob:"),
        ("s3://bucket/a.jpg", "begins with s3:"),
        ("ftp://example.org/a.jpg", "begins with ftp:"),
    ],
)
def test_an_address_alone_is_refused_until_the_modality_says_what_it_is(
    text: str, said: str
) -> None:
    """Its characters are embedded only if the client says that it is a text."""
    with pytest.raises(InvalidRequest, match=said):
        item(text)
    assert item(text, "text") == item({"text": text}) == Item(text=text)
    assert item(text, "image") == item({"image": text}) == Item(image=text)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("break_lines", [False, True])
def test_base64_of_an_image_alone_is_refused(kind: str, break_lines: bool) -> None:
    """It needs a data URI or a modality; otherwise its characters would be embedded."""
    text = FORMATS[kind]
    if break_lines:
        text = "\n".join(text[i : i + 20] for i in range(0, len(text), 20))
    with pytest.raises(InvalidRequest, match=r"base64 of an image.*modality: image"):
        item(text)
    with pytest.raises(InvalidRequest, match="base64 of an image"):
        item(as_received(LARGE))
    assert item(text, "image") == Item(image=text)


@pytest.mark.parametrize(
    "text",
    [
        "a photo of http://example.org/a.jpg",
        "database: a diagram",
        "note: the file: is here",
        "blob: a shapeless thing",
        "file: a tool that smooths metal",
        "a " + BASE64[:70],
        "iVBORw0KGgo",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
        "C:\\photos",
        "1://",
    ],
)
def test_texts_stay_texts(text: str) -> None:
    """Also those with an address or a colon in them, and long words."""
    assert item(text) == item({"text": text, "image": None}) == Item(text=text)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=90))
def test_a_text_is_embedded_as_it_is_or_refused(text: str) -> None:
    """Only what begins with data: can be an image, and only if it is base64."""
    try:
        found = item(text)
    except InvalidRequest:
        return
    assert found == Item(text=text)
    assert not text.strip().lower().startswith("data:")


@pytest.mark.parametrize("text", [f"{prefix}{BASE64}" for prefix in PREFIXES])
def test_an_image_that_is_called_a_text_is_refused(text: str) -> None:
    """In an object, and in the two forms of a message's text."""
    for content, messages in (
        ({"text": text}, None),
        (None, [{"role": "user", "content": text}]),
        (None, [{"role": "user", "content": [{"type": "text", "text": text}]}]),
    ):
        with pytest.raises(InvalidRequest, match="data URI of an image"):
            read_items(content, messages, None, Limits())


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"text": None},
        {"image": None, "text": None},
        {"text": "a", "image": "b"},
        {"text": 3},
        {"image": []},
        {"txt": "a"},
        None,
        3,
        ["a"],
    ],
)
def test_other_objects_are_refused(value: Any) -> None:
    """Neither a text nor an image, or both."""
    with pytest.raises(InvalidRequest):
        item(value)


def test_errors_name_the_input_of_a_list() -> None:
    """By its position."""
    with pytest.raises(InvalidRequest, match=r"^input\[2\]: A text is empty\."):
        read_items(["a", "b", " "], None, None, Limits())
    with pytest.raises(InvalidRequest, match=r"^A text is empty"):
        read_items(" ", None, None, Limits())
