"""Reads request bodies as they arrive and bounds their size."""

from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from serve_app.api.content_length import announced_bytes
from serve_app.api.sources import too_large
from serve_app.api.threads import off_loop

THREAD_BYTES = 2**20
"""Bodies of at least this many bytes are joined in a worker thread: 20 MiB take 20 ms."""


async def body_chunks(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """Return the chunks of a body while its size is counted.

    Args:
        request: The request, whose body has not been read yet.
        max_bytes: Maximum size of the body in bytes.

    Raises:
        PayloadTooLarge: The body is larger, or its Content-Length says so.
        ClientDisconnect: The client closed the connection.
    """
    announced = announced_bytes(request.headers)
    if announced is not None and announced > max_bytes:
        raise too_large(max_bytes)
    num_bytes = 0
    has_more = True
    while has_more:  # `request.stream()` would be a second async generator, which takes longer
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise too_large(max_bytes)
        if chunk:
            yield chunk
        has_more = message.get("more_body", False)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return a whole body; see `body_chunks` for the arguments and errors."""
    chunks = [chunk async for chunk in body_chunks(request, max_bytes)]
    if len(chunks) == 1:
        return chunks[0]
    if sum(map(len, chunks)) < THREAD_BYTES:
        return b"".join(chunks)
    return await off_loop(b"".join, chunks)  # joining releases the GIL


def bounded_receive(receive: Receive, max_bytes: int) -> Receive:
    """Return an ASGI `receive` that raises `PayloadTooLarge` after `max_bytes` of a body."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise too_large(max_bytes)
        return message

    return bounded
