"""Reads responses of untrusted servers, with limits on size and time.

httpx reads a response to its end and decompresses it without a limit, and 1 MB of gzip may become
1 GB. Every HTTP client in this package reads responses with this module, except
`api/fetching.py`, which has its own limits for images that are fetched by URL.
"""

import time
import zlib

import httpx

MAX_RESPONSE_BYTES = 128 * 2**20
"""Default maximum size of a decompressed response. The tags of 512 stored embeddings, scored
against 1,000 labels with a threshold of 0, have about 37 MB."""
MAX_ERROR_BYTES = 2**20
"""Maximum size of a response that reports an error."""
ACCEPTED_ENCODINGS = "gzip"
"""Value of `Accept-Encoding`.

Other encodings are refused, because this module limits only the decompression of gzip.
"""


class UnboundedResponse(httpx.HTTPError):
    """Reading a response was stopped, because it exceeds a limit or is not readable."""


class ResponseTooLarge(UnboundedResponse):
    """The response has more bytes than the limit."""


class ResponseTooSlow(UnboundedResponse):
    """The response did not end in time, although bytes kept arriving."""


class ResponseNotReadable(UnboundedResponse):
    """The response has an encoding that was not requested, or is damaged."""


class BoundedBody:
    """The body of one response while it is being read."""

    def __init__(self, response: httpx.Response, max_bytes: int, ends_s: float) -> None:
        """Begin to read a response.

        Args:
            response: The response, whose body has not been read yet.
            max_bytes: Maximum size of the decompressed body.
            ends_s: Deadline, in seconds of `time.monotonic`.

        Raises:
            ResponseNotReadable: Its encoding is not gzip or identity.
        """
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", ""):
            raise ResponseNotReadable("the response has a content encoding that was not requested")
        self._unpack = zlib.decompressobj(16 + zlib.MAX_WBITS) if encoding == "gzip" else None
        self._data = bytearray()
        self._max_bytes = max_bytes
        self._ends_s = ends_s

    def add(self, part: bytes) -> None:
        """Add bytes as they were received.

        Raises:
            UnboundedResponse: The body is too large, too slow, or damaged.
        """
        if time.monotonic() > self._ends_s:
            raise ResponseTooSlow("the response did not end in time")
        remaining = self._max_bytes - len(self._data)
        if self._unpack is not None:
            try:
                part = self._unpack.decompress(part, remaining + 1)
            except zlib.error as error:
                raise ResponseNotReadable("the response is damaged gzip") from error
        if len(part) > remaining:
            raise ResponseTooLarge(f"the response has more than {self._max_bytes:,} bytes")
        self._data += part

    def content(self) -> bytes:
        """Return the whole body.

        Raises:
            ResponseNotReadable: The compressed body is truncated.
        """
        if self._unpack is not None and self._data and not self._unpack.eof:
            raise ResponseNotReadable("the response ends in the middle of its gzip stream")
        return bytes(self._data)


def limit_of(response: httpx.Response, max_bytes: int) -> int:
    """Return the size limit of a response, which is lower for an error."""
    return max_bytes if response.is_success else min(max_bytes, MAX_ERROR_BYTES)


def read_response(response: httpx.Response, max_bytes: int, timeout_s: float) -> httpx.Response:
    """Read a streamed response, and return it like a response that was not streamed.

    Args:
        response: From `client.send(..., stream=True)` or `client.stream(...)`; the caller closes
            it.
        max_bytes: Maximum size of the decompressed body.
        timeout_s: Maximum time in seconds for the whole body.

    Raises:
        UnboundedResponse: It is too large, too slow, or its encoding is not gzip or identity.
        httpx.HTTPError: The connection broke.
    """
    if response.is_stream_consumed:  # a test double that is not streamed
        return response
    body = BoundedBody(response, limit_of(response, max_bytes), time.monotonic() + timeout_s)
    for part in response.iter_raw():
        body.add(part)
    return _whole(response, body.content())


async def aread_response(
    response: httpx.Response, max_bytes: int, timeout_s: float
) -> httpx.Response:
    """Read a streamed response; see `read_response`."""
    if response.is_stream_consumed:
        return response
    body = BoundedBody(response, limit_of(response, max_bytes), time.monotonic() + timeout_s)
    async for part in response.aiter_raw():
        body.add(part)
    return _whole(response, body.content())


def _whole(response: httpx.Response, content: bytes) -> httpx.Response:
    kept = [
        (name, value)
        for name, value in response.headers.multi_items()
        if name not in _ABOUT_THE_BODY
    ]
    return httpx.Response(
        response.status_code, headers=kept, content=content, request=response.request
    )


_ABOUT_THE_BODY = ("content-encoding", "content-length", "transfer-encoding")
