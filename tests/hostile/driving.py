"""Drives an ASGI application with large bodies and watches the event loop and the memory
meanwhile.
"""

import asyncio
import gc
import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Scope

CHUNK_BYTES = 64 * 1024
"""Bytes of a body in one ASGI message, as uvicorn sends them."""
WATCH_S = 0.002


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a request led to.

    Attributes:
        status: HTTP status.
        body: Of the response.
        largest_chunk: Bytes of the largest ASGI message of the response.
        read: Bytes of the request's body that the application asked for.
        longest_gap_s: Longest time in which the event loop was stopped by this process.
        peak_bytes: Growth of the process's memory, at its highest.
        cpu_s: CPU seconds of the process.
    """

    status: int
    body: bytes
    largest_chunk: int
    read: int
    longest_gap_s: float
    peak_bytes: int
    cpu_s: float

    @property
    def code(self) -> str | None:
        """The error's code, if the response is one of our errors."""
        error = json.loads(self.body).get("error")
        return error["code"] if isinstance(error, dict) else None


class Watch:
    """Measures gaps of the event loop and the process's memory until it is stopped.

    A gap counts for no more than the CPU time of this process in it: a machine that is busy with
    something else stops the event loop too.
    """

    def __init__(self) -> None:
        self.longest_gap_s = 0.0
        self._before = resident_bytes()
        self._peak = self._before
        self._task = asyncio.create_task(self._run())

    @property
    def peak_bytes(self) -> int:
        """Growth of the memory since the start, at its highest."""
        return self._peak - self._before

    async def _run(self) -> None:
        while True:
            last_s = time.perf_counter()
            last_cpu_s = time.process_time()
            await asyncio.sleep(WATCH_S)
            gap_s = time.perf_counter() - last_s - WATCH_S
            cpu_s = time.process_time() - last_cpu_s
            self.longest_gap_s = max(self.longest_gap_s, min(gap_s, cpu_s))
            self._peak = max(self._peak, resident_bytes())

    async def stop(self) -> None:
        """Stop measuring."""
        await asyncio.sleep(2 * WATCH_S)  # a gap that is still going on counts too
        self._task.cancel()


async def send_request(
    app: ASGIApp,
    path: str,
    body: bytes,
    content_type: str = "application/json",
    method: str = "POST",
    query: bytes = b"",
    on_chunk: Callable[[int], Any] | None = None,
    announces_length: bool = True,
) -> Outcome:
    """Send one request to an application in this process, its body in chunks.

    Args:
        app: The application.
        path: Of the request.
        body: Of the request.
        content_type: Of the body.
        method: Of the request.
        query: The query string.
        on_chunk: Called with the size of each chunk of the response; awaited if it returns a
            coroutine, as a client that reads slowly.
        announces_length: Whether the head says how long the body is. If it does, the rest of a
            refused body is read and dropped, so `read` counts all of it.
    """
    sent = 0
    messages: list[Message] = []
    sizes: list[int] = []

    async def receive() -> Message:
        nonlocal sent
        await asyncio.sleep(0)
        chunk = body[sent : sent + CHUNK_BYTES]
        sent += len(chunk)
        return {"type": "http.request", "body": chunk, "more_body": sent < len(body)}

    async def send(message: Message) -> None:
        messages.append(message)
        if message["type"] == "http.response.body":
            sizes.append(len(message.get("body", b"")))
            if on_chunk is not None:
                await on_chunk(sizes[-1])

    # objects that other tests left in this process are not the service's, and slow to go through
    gc.freeze()
    watch = Watch()
    await asyncio.sleep(3 * WATCH_S)
    started_s = time.process_time()
    length = len(body) if announces_length else None
    try:
        await app(_scope(method, path, query, content_type, length), receive, send)
    finally:
        gc.unfreeze()
    cpu_s = time.process_time() - started_s
    await watch.stop()
    response = b"".join(message.get("body", b"") for message in messages[1:])
    return Outcome(
        messages[0]["status"],
        response,
        max(sizes),
        sent,
        watch.longest_gap_s,
        watch.peak_bytes,
        cpu_s,
    )


def resident_bytes() -> int:
    """Return the memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _scope(method: str, path: str, query: bytes, content_type: str, length: int | None) -> Scope:
    headers = [(b"content-type", content_type.encode())]
    if length is None:
        headers.append((b"transfer-encoding", b"chunked"))
    else:
        headers.append((b"content-length", b"%d" % length))
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
