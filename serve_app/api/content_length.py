"""The size of a body according to its headers.

Used for the bodies of requests and for images that are fetched.
"""

from starlette.datastructures import Headers

MAX_DIGITS = 20
"""Longer numbers are cut to this many digits, which is more than any limit: parsing them all could
take long."""


def parse_content_length(value: str) -> int | None:
    """Return the number of bytes in a Content-Length header; None if it is not a number."""
    value = value.strip()
    if not (value.isascii() and value.isdigit()):
        return None
    return int(value.lstrip("0")[:MAX_DIGITS] or "0")


def announced_bytes(headers: Headers) -> int | None:
    """Return the size of a request's body in bytes; None for a chunked body or a bad header."""
    if "transfer-encoding" in headers:
        return None
    return parse_content_length(headers.get("content-length", "0"))
