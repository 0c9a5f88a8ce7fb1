"""A closed-loop HTTP load generator: some clients, one keep-alive connection each, the next request when the last is answered.

Small on purpose: it shares the machine with what it measures (0.1 ms of CPU a request where httpx takes 1.5).
`python -m bench.load URL --clients 32 --seconds 10 PICTURE...` prints one JSON object.
"""

import argparse
import asyncio
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvloop


@dataclass(frozen=True)
class Load:
    """What a run measured: requests a second, latencies in milliseconds, and answers that were not 200."""

    per_second: float
    p50_ms: float
    p99_ms: float
    requests: int
    failed: int


class Client(asyncio.Protocol):
    """One connection that sends its requests in turn until it is told to stop."""

    def __init__(self, requests: list[bytes], deadline: float, results: list[tuple[float, int]], done: "asyncio.Future[None]") -> None:
        self.requests, self.deadline, self.results, self.done = requests, deadline, results, done
        self.sent, self.started, self.buffer, self.needed = 0, 0.0, b"", -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        if time.perf_counter() > self.deadline:
            self.transport.close()
            return
        self.buffer, self.needed, self.started = b"", -1, time.perf_counter()
        self.transport.write(self.requests[self.sent % len(self.requests)])  # type: ignore[attr-defined]
        self.sent += 1

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
            self.results.append((time.perf_counter() - self.started, int(self.buffer[9:12])))
            self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


def http_request(url: str, body: bytes, content_type: str) -> bytes:
    """Return the bytes of a POST."""
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    head = f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def run(url: str, requests: list[bytes], clients: int, seconds: float) -> Load:
    """Keep `clients` connections asking for some seconds."""
    loop, parts = asyncio.get_running_loop(), urlsplit(url)
    results: list[tuple[float, int]] = []
    started = time.perf_counter()
    done = []
    for number in range(clients):
        future = loop.create_future()
        turned = requests[number % len(requests) :] + requests[: number % len(requests)]
        await loop.create_connection(lambda r=turned, f=future: Client(r, started + seconds, results, f), parts.hostname, parts.port)  # type: ignore[misc]
        done.append(future)
    await asyncio.gather(*done)
    elapsed = time.perf_counter() - started
    times = sorted(seconds * 1000 for seconds, _ in results)
    failed = sum(status != 200 for _, status in results)
    return Load(len(results) / elapsed, statistics.median(times), times[int(len(times) * 0.99)], len(results), failed)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--multipart", metavar="FIELD", help="send a form file under this name instead of a raw body")
    given = parser.parse_args()
    requests = [_request(given.url, path.read_bytes(), given.multipart) for path in given.pictures]
    print(json.dumps(asdict(uvloop.run(run(given.url, requests, given.clients, given.seconds)))))


def _request(url: str, picture: bytes, field: str | None) -> bytes:
    if field is None:
        return http_request(url, picture, "image/jpeg")
    head = f'--xxxx\r\nContent-Disposition: form-data; name="{field}"; filename="p.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    return http_request(url, head.encode() + picture + b"\r\n--xxxx--\r\n", "multipart/form-data; boundary=xxxx")


if __name__ == "__main__":
    main()
