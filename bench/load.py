"""A closed-loop HTTP load generator: each client sends its next request after the last response.

It is small because it shares the machine with what it measures: a request takes 0.1 ms of CPU, and
1.5 ms with httpx. `python -m bench.load URL --clients 32 --seconds 10 IMAGE...` prints one JSON
object.
"""

import argparse
import asyncio
import json
import signal
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvloop


@dataclass(frozen=True)
class Load:
    """What a run measured.

    Attributes:
        per_second: Responses of 200 per second.
        p50_ms: Median latency of them in milliseconds, from the request to the end of the response.
        p99_ms: 99th percentile of the latency.
        requests: Number of requests that were sent.
        failed: Number of other responses, and of connections closed without a response.
        statuses: Number of responses by status; `dropped` are the closed connections.
    """

    per_second: float
    p50_ms: float
    p99_ms: float
    requests: int
    failed: int
    statuses: dict[str, int]


class Client(asyncio.Protocol):
    """Sends its requests in turn until the deadline; reconnects if the connection is closed."""

    def __init__(
        self,
        address: tuple[str, int],
        requests: list[bytes],
        deadline: float,
        results: list[tuple[float, str]],
    ) -> None:
        self.address = address
        self.requests = requests
        self.deadline = deadline
        self.results = results
        self.sent = 0
        self.started = 0.0
        self.buffer = b""
        self.needed = -1
        self.waiting = False
        self.closed = asyncio.Event()

    async def run(self) -> None:
        """Stay connected until the deadline."""
        while time.perf_counter() < self.deadline:
            self.closed.clear()
            await asyncio.get_running_loop().create_connection(lambda: self, *self.address)
            await self.closed.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        if time.perf_counter() > self.deadline:
            self.transport.close()
            return
        self.buffer = b""
        self.needed = -1
        self.started = time.perf_counter()
        self.transport.write(self.requests[self.sent % len(self.requests)])  # type: ignore[attr-defined]
        self.sent = self.sent + 1
        self.waiting = True

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.needed < 0:
            head_end = self.buffer.find(b"\r\n\r\n")
            if head_end < 0:
                return
            head = self.buffer[:head_end].lower()
            at = head.index(b"content-length:") + 15
            self.needed = head_end + 4 + int(head[at:].split(b"\r\n", 1)[0])
        if len(self.buffer) >= self.needed:
            head = self.buffer.lower()
            self.waiting = False
            self.results.append((time.perf_counter() - self.started, head[9:12].decode()))
            if b"connection: close\r\n" not in head[: self.needed]:
                self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waiting:
            self.results.append((time.perf_counter() - self.started, "dropped"))
            self.waiting = False
        self.closed.set()


def http_request(url: str, body: bytes, content_type: str) -> bytes:
    """Return the bytes of a POST."""
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {parts.netloc}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode() + body


async def run(url: str, requests: list[bytes], clients: int, seconds: float) -> Load:
    """Send requests over `clients` connections for some seconds, or until SIGTERM."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    address = (parts.hostname, parts.port or 80)
    results: list[tuple[float, str]] = []
    started = time.perf_counter()
    turned = [
        requests[number % len(requests) :] + requests[: number % len(requests)]
        for number in range(clients)
    ]
    running = [Client(address, own, started + seconds, results) for own in turned]

    def end() -> None:
        for client in running:
            client.deadline = 0.0  # after the request that is under way

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
    await asyncio.gather(*[client.run() for client in running])
    elapsed = time.perf_counter() - started
    times = sorted(taken * 1000 for taken, status in results if status == "200")
    if not times:
        raise SystemExit(
            f"no request was answered with 200: {dict(Counter(status for _, status in results))}"
        )
    statuses = dict(Counter(status for _, status in results))
    p99 = times[int(len(times) * 0.99)]
    return Load(
        len(times) / elapsed,
        statistics.median(times),
        p99,
        len(results),
        len(results) - len(times),
        statuses,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument(
        "--multipart",
        metavar="FIELD",
        help="send a form file under this name instead of a raw body",
    )
    parser.add_argument(
        "--images-per-request",
        type=int,
        default=1,
        metavar="N",
        help="send this many images in each request, as the files of a form",
    )
    args = parser.parse_args()
    contents = [path.read_bytes() for path in args.images]
    if args.images_per_request == 1:
        requests = [_request(args.url, content, args.multipart) for content in contents]
    else:
        fields = [args.multipart or "file"] * args.images_per_request
        requests = [
            _form(
                args.url,
                [(field, contents[(start + i) % len(contents)]) for i, field in enumerate(fields)],
            )
            for start in range(len(contents))
        ]
    print(json.dumps(asdict(uvloop.run(run(args.url, requests, args.clients, args.seconds)))))


def _request(url: str, image: bytes, field: str | None) -> bytes:
    if field is None:
        return http_request(url, image, "image/jpeg")
    return _form(url, [(field, image)])


def _form(url: str, files: Sequence[tuple[str, bytes]]) -> bytes:
    """Return a request with a form of several files."""
    form = b""
    for field, image in files:
        head = (
            "--xxxx\r\n"
            f'Content-Disposition: form-data; name="{field}"; filename="p.jpg"\r\n'
            "Content-Type: image/jpeg\r\n\r\n"
        )
        form += head.encode() + image + b"\r\n"
    return http_request(url, form + b"--xxxx--\r\n", "multipart/form-data; boundary=xxxx")


if __name__ == "__main__":
    main()
