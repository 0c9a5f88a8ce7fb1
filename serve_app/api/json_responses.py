"""JSON responses of any size: small ones in one step, large ones in slices off the event loop.

Not here: what a response says (`answers.py`).
"""

import json
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from serve_app.api.threads import off_loop
from serve_app.errors import PayloadTooLarge

INLINE_VALUES = 1_000
"""Responses of at most this many tags or numbers (about 64 KiB) are written on the event loop."""
CHUNK_BYTES = 64 * 1024
"""Bytes of one ASGI message of a large response."""
ITEMS_AT_ONCE = 256
"""Items of a list that one call of the C encoder writes, which holds the GIL for under 1 ms."""


class ChunkedJson(Response):
    """A JSON response sent in chunks; each is freed once it is sent."""

    media_type = "application/json"

    def __init__(self, chunks: deque[bytes]) -> None:
        num_bytes = sum(map(len, chunks))
        super().__init__(headers={"content-length": str(num_bytes)})
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        await send(start)
        while self._chunks:
            chunk = self._chunks.popleft()
            more = bool(self._chunks)
            await send({"type": "http.response.body", "body": chunk, "more_body": more})


async def json_response(
    content: Mapping[str, Any], num_values: int, max_bytes: int | None
) -> Response:
    """Return a response, written off the event loop if it is large.

    Args:
        content: The members of its object. A value may be an iterator, which becomes a list whose
            items are built while they are written.
        num_values: Number of tags and numbers in it, which predicts its size before it is written.
        max_bytes: Maximum size of the response in bytes; None for no limit.

    Raises:
        PayloadTooLarge: The response has more than `max_bytes`.
    """
    if num_values <= INLINE_VALUES:
        response = JSONResponse({key: _as_value(value) for key, value in content.items()})
        if max_bytes is not None and len(response.body) > max_bytes:
            raise too_large_to_send(max_bytes)
        return response
    return ChunkedJson(await off_loop(write_json, content, max_bytes))


def write_json(content: Any, max_bytes: int | None = None) -> deque[bytes]:
    """Return JSON in chunks of about `CHUNK_BYTES`; other threads can run between them.

    Raises:
        PayloadTooLarge: The JSON has more than `max_bytes`.
    """
    chunks: deque[bytes] = deque()
    chunk = bytearray()
    num_bytes = 0
    for text in _pieces(content):
        piece = text.encode()
        num_bytes += len(piece)
        if max_bytes is not None and num_bytes > max_bytes:
            raise too_large_to_send(max_bytes)
        chunk += piece
        if len(chunk) >= CHUNK_BYTES:
            chunks.append(bytes(chunk))
            chunk.clear()
    chunks.append(bytes(chunk))
    return chunks


def too_large_to_send(max_bytes: int) -> PayloadTooLarge:
    """Return the error for a response of more than `max_bytes`."""
    return PayloadTooLarge(
        f"The response would have more than {max_bytes:,} bytes. Lower max_tags, raise "
        "confidence_threshold, use encoding_format base64 for embeddings, or send less in one "
        "request."
    )


def _as_value(value: Any) -> Any:
    return list(value) if isinstance(value, Iterator) else value


def _pieces(value: Any) -> Iterator[str]:
    """Return JSON in pieces, none of which takes long to write."""
    if isinstance(value, Mapping):
        separator = "{"
        for key, item in value.items():
            yield f"{separator}{_dumps(key)}:"
            yield from _pieces(item)
            separator = ","
        yield "}" if value else "{}"
    elif isinstance(value, Iterator):
        separator = "["
        for item in value:
            yield separator
            yield from _pieces(item)
            separator = ","
        yield "[]" if separator == "[" else "]"
    elif isinstance(value, list | tuple) and len(value) > ITEMS_AT_ONCE:
        yield from _sliced(value)
    else:
        yield _dumps(value)


def _sliced(items: list[Any] | tuple[Any, ...]) -> Iterator[str]:
    separator = "["
    for start in range(0, len(items), ITEMS_AT_ONCE):
        yield separator + _dumps(items[start : start + ITEMS_AT_ONCE])[1:-1]
        separator = ","
    yield "]"


def _dumps(value: Any) -> str:
    """Write a value as `JSONResponse` does."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
