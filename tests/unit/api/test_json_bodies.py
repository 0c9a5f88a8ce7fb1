"""JSON bodies read in slices: the same values as `json.loads`, and nothing beyond the bounds."""

import base64
import binascii
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.api.json_bodies import SLICE_BYTES, JsonReader
from serve_app.api.json_values import MAX_DEPTH, MAX_KEY_CHARACTERS, MAX_KEYS, JsonBounds
from serve_app.api.long_texts import LONG_TEXT_BYTES, LongText
from serve_app.api.sources import unpack_image
from serve_app.errors import InvalidRequest, PayloadTooLarge, RequestError

BOUNDS = JsonBounds(
    max_items=10, counted={"images": 3, "embeddings": 4}, rows="embeddings", max_row_numbers=5
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.text(max_size=20)
    | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=15,
)


def depth_of(value: Any) -> int:
    """Return how many lists and objects are in each other."""
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


def parse(body: bytes, step: int = SLICE_BYTES, bounds: JsonBounds = BOUNDS) -> dict[str, Any]:
    """Parse a body that arrives in chunks of so many bytes."""
    reader = JsonReader(bounds)
    for start in range(0, len(body), step):
        reader.feed(body[start : start + step])
    return reader.finish(b"")


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=5), st.booleans(), st.integers(1, 40))
def test_values_are_those_of_the_standard_library(
    content: dict[str, Any], is_ascii: bool, step: int
) -> None:
    """Escaped or in UTF-8, wherever the body is cut."""
    body = json.dumps(content, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    if depth_of(content) > MAX_DEPTH:  # the only bound that these can reach
        with pytest.raises(InvalidRequest, match="levels deep"):
            parse(body, step)
    else:
        assert parse(body, step) == json.loads(body)


@pytest.mark.parametrize(
    "text", ['"\\/\b\f\n\r\t', "\ud800 half", "😀", "\x00", "\\", "\\\\" * 15_000, "é" * 10_000]
)
def test_strings_keep_every_character(text: str) -> None:
    """Also half of a surrogate pair, which is refused later with a sentence of its own."""
    assert parse(json.dumps({"k": text}).encode()) == {"k": text}


def test_bodies_may_start_with_a_byte_order_mark() -> None:
    """As some editors and Windows tools write files."""
    assert parse(b'\xef\xbb\xbf{"a": 1} \r\n') == {"a": 1}


def test_the_last_of_two_equal_keys_counts() -> None:
    """As in the standard library."""
    assert parse(b'{"a": 1, "a": 2}') == {"a": 2}


NOT_JSON = [
    b"", b" ", b"{", b'{"a":1', b'{"a":1}x', b"{}{}", b"{'a':1}", b'{"a":NaN}', b'{"a":Infinity}',
    b'{"a":-Infinity}', b'{"a":1e400}', b'{"a":01}', b'{"a":1.}', b'{"a":"\xff"}', b'{"a":"\n"}',
    b'{"a":"\\x"}', b'{"a":"\\u12"}', b'{"a":"\\u12', b'{"a":"\\', b'{"a":"', b'{"a":tru}',
    b'{"a":18446744073709551616}', b'{"\xff":1}', b'{"a" 1}', b'{"a":1,}', b"\xff\xfe{\x00}\x00",
    b'{"a":"' + b"x" * LONG_TEXT_BYTES + b'x\n"}', b'{"a":"' + b"x" * LONG_TEXT_BYTES + b'\\x"}',
]  # fmt: skip


@pytest.mark.parametrize("body", NOT_JSON, ids=range(len(NOT_JSON)))
@pytest.mark.parametrize("step", [1_000_000, 7])
def test_what_is_not_json_is_refused(body: bytes, step: int) -> None:
    """Numbers that are no finite float or 64-bit integer are not JSON here either."""
    with pytest.raises(InvalidRequest, match="not JSON"):
        parse(body, step)


@pytest.mark.parametrize("body", [b"[]", b"1", b'"a"', b"null", b"[[[["])
def test_only_objects_are_taken(body: bytes) -> None:
    """The sentence shows one."""
    with pytest.raises(InvalidRequest, match="must be a JSON object"):
        parse(body)


def nested(depth: int) -> dict[str, Any]:
    """Return objects in each other."""
    return {"a": nested(depth - 1)} if depth > 1 else {}


AT_THE_BOUND = [
    ({"labels": ["a"] * 10}, {"labels": ["a"] * 11}, InvalidRequest, "'labels' holds more than 10"),
    ({"images": ["a"] * 3}, {"images": ["a"] * 4}, PayloadTooLarge, "'images' holds more than 3"),
    ({"images": [[]] * 3}, {"images": [[]] * 4}, PayloadTooLarge, "'images' holds more than 3"),
    ({"images": [{}] * 3}, {"images": [{}] * 4}, PayloadTooLarge, "'images' holds more than 3"),
    (
        {"embeddings": [[1]] * 4},
        {"embeddings": [[1]] * 5},
        PayloadTooLarge,
        "'embeddings' holds more than 4",
    ),
    ({"embeddings": [[1] * 5]}, {"embeddings": [[1] * 6]}, InvalidRequest, "more than 5 numbers"),
    ({"embeddings": [[1]]}, {"embeddings": [["1"]]}, InvalidRequest, "list of numbers, or base64"),
    ({"embeddings": [[1]]}, {"embeddings": [[[1]]]}, InvalidRequest, "list of numbers, or base64"),
    ({"embeddings": [[1]]}, {"embeddings": [[True]]}, InvalidRequest, "list of numbers, or base"),
    (
        {str(i): 1 for i in range(MAX_KEYS)},
        {str(i): 1 for i in range(MAX_KEYS + 1)},
        InvalidRequest,
        "more than 100 keys",
    ),
    (
        {"k" * MAX_KEY_CHARACTERS: 1},
        {"k" * (MAX_KEY_CHARACTERS + 1): 1},
        InvalidRequest,
        "more than 256 characters",
    ),
    ({"k": 1}, {"k" * (LONG_TEXT_BYTES + 1): 1}, InvalidRequest, "more than 256 characters"),
    (nested(MAX_DEPTH), nested(MAX_DEPTH + 1), InvalidRequest, "levels deep"),
    (
        {str(i): [[1] * 9] for i in range(14)},
        {str(i): [[1] * 10] for i in range(14)},
        InvalidRequest,
        "more than 160 values",
    ),
]


@pytest.mark.parametrize(
    ("within", "beyond", "error", "message"), AT_THE_BOUND, ids=range(len(AT_THE_BOUND))
)
def test_bounds_are_the_most_that_is_taken(
    within: dict[str, Any], beyond: dict[str, Any], error: type[RequestError], message: str
) -> None:
    """As much as a bound says is read, and one more is refused."""
    parse(json.dumps(within).encode())
    with pytest.raises(error, match=message):
        parse(json.dumps(beyond).encode())


def test_rows_of_numbers_become_arrays() -> None:
    """Which take 4 bytes a number, where a list takes 32; numbers beyond float32 are infinite."""
    first, second = parse(b'{"embeddings": [[1, 2.5, -3e1, 1e300], "AAAA"]}')["embeddings"]
    assert (first.dtype, first.tolist()) == (np.float32, [1, 2.5, -30, np.inf])
    assert second == "AAAA"


DATA = np.random.default_rng(0).bytes(150_000)
ENCODED = base64.b64encode(DATA).decode()


def long_text(text: str) -> LongText:
    """Return a text as a body holds it."""
    found = parse(json.dumps({"image": text}).encode())["image"]
    assert isinstance(found, LongText)
    return found


@pytest.mark.parametrize(
    "text",
    [
        ENCODED,
        f"data:image/jpeg;base64,{ENCODED}",
        f"DATA:image/svg+xml;charset=utf-8;base64,{ENCODED}",
        "\r\n".join(ENCODED[i : i + 76] for i in range(0, len(ENCODED), 76)),
        " ".join(ENCODED[i : i + 5] for i in range(0, len(ENCODED), 5)),
    ],
    ids=["plain", "data URI", "long data URI", "lines", "blanks"],
)
def test_long_base64_is_decoded_in_pieces(text: str) -> None:
    """With line breaks wherever they are, and a data URI's prefix."""
    assert unpack_image(long_text(text), 10**6) == DATA


def test_long_base64_may_be_escaped() -> None:
    """PHP escapes each slash, .NET each plus."""
    escaped = ENCODED.replace("/", "\\/").replace("+", "\\u002B")
    found = parse(f'{{"image": "{escaped}"}}'.encode(), step=1_000)["image"]
    assert unpack_image(found, 10**6) == DATA


@pytest.mark.parametrize("length", range(99_000, 99_006))
def test_base64_of_every_length_is_decoded(length: int) -> None:
    """With one, two or no characters of padding."""
    text = base64.b64encode(DATA[:length]).decode()
    assert unpack_image(long_text(text), 10**6) == DATA[:length]


@pytest.mark.parametrize(
    "text",
    ["A", "AA", "AAA", "A" * 5, "AA==AA==", "AA=", "=AAA", "A-_A", "AAAé", "AA\x00A", "data:,AAAA"],
)
@pytest.mark.parametrize("padding", [0, 80_000])
def test_what_is_not_base64_is_refused_as_by_the_standard_library(text: str, padding: int) -> None:
    """Short or long."""
    whole = "A" * padding + text
    with pytest.raises((binascii.Error, ValueError)):
        base64.b64decode(whole, validate=True)
    given_text = long_text(whole) if padding else whole
    assert isinstance(unpack_image(given_text, 10**6), InvalidRequest)


def test_base64_ends_with_its_padding() -> None:
    """Also where the padding ends a piece, and a decoder of the next piece knows nothing of it."""
    whole = b"AAAA" * 100  # longer than the head that is looked at for a data URI
    for pieces, is_image in (((whole, b"AA=="), True), ((whole + b"AA==", b"AAAA"), False)):
        text = LongText()
        for piece in pieces:
            text.append(piece)
        assert isinstance(unpack_image(text, 1_000), bytes) == is_image


def test_long_base64_of_too_large_an_image_is_refused() -> None:
    """Before it is decoded, and after."""
    assert isinstance(unpack_image(long_text(ENCODED), len(DATA) // 2), PayloadTooLarge)
    assert isinstance(unpack_image(long_text(ENCODED), len(DATA) - 1), PayloadTooLarge)
    assert unpack_image(long_text(ENCODED), len(DATA)) == DATA
