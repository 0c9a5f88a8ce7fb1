"""One reading of Content-Length, for requests that are admitted, bodies that are bounded and images
that are fetched.
"""

import re
from pathlib import Path

import pytest
from starlette.datastructures import Headers

import serve_app
from serve_app.api.content_length import announced_bytes, parse_content_length

ROOT = Path(serve_app.__file__).parent


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("0", 0),
        ("17", 17),
        (" 17 ", 17),
        ("00017", 17),
        ("000000000000000000000000017", 17),
        ("", None),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("1e3", None),
        ("²", None),
        ("١٧", None),
        ("1,1", None),
        ("0x10", None),
    ],
)
def test_only_digits_are_a_number(value: str, size: int | None) -> None:
    """Also not what Python's `int` or `str.isdigit` would take."""
    assert parse_content_length(value) == size


def test_a_number_of_any_length_is_read_and_large() -> None:
    """A number of more digits than Python parses must not end the request."""
    assert parse_content_length("9" * 10_000) >= 10**19  # type: ignore[operator]


def test_a_request_may_leave_it_out() -> None:
    """Then it has no body, unless it comes in chunks, whose size nobody knows."""
    assert announced_bytes(Headers({})) == 0
    assert announced_bytes(Headers({"content-length": "5"})) == 5
    assert announced_bytes(Headers({"content-length": "5", "transfer-encoding": "chunked"})) is None
    assert announced_bytes(Headers({"content-length": "x"})) is None


def test_nothing_else_reads_it() -> None:
    """The header of incoming requests and responses is read by this module and nowhere else in the
    HTTP face.
    """
    reading = re.compile(r"""(?:get|_header)\([^)]*content-length""")
    found = {
        path.name for path in ROOT.glob("api/**/*.py") if reading.search(path.read_text().lower())
    }
    assert found == {"content_length.py", "fetching.py"}
    assert "parse_content_length(_header(" in (ROOT / "api/fetching.py").read_text()
