"""Measures what known attacks do to a good client: `python -m bench.attacks --seconds 30`.

It starts the demo service and measures a good client alone, then during each attack: its median and
99th percentile, the responses, and the memory of every process at the peak and afterwards.
Attackers come from 127.0.0.1 and the good client from 127.0.0.2, like two addresses of a network.
Attackers run at a lower priority, because on the same machine making requests takes CPU time too.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from serve_app.demo import settings as demo_settings
from serve_app.siglip.hub import load_checkpoint
from tests.cluster.conftest import demo_config
from tests.hostile.encoded import flat, jpeg_with_scans, photo, png, saved
from tests.service import Service

MIB = 2**20
GOOD = (Path(demo_settings.__file__).parent / "samples" / "red-circle.jpg").read_bytes()
GOOD_ADDRESS = "127.0.0.2"
GOOD_PAUSE_S = 0.02
NICE = 10
MEMORY_EVERY_S = 0.25
SETTLE_S = 12.0
"""Pause after an attack before memory is measured; replicas release it within seconds."""
NO_READING_S = 1000.0


@dataclass(frozen=True, slots=True)
class Target:
    """Address of the service, and the API keys of both sides if it requires keys."""

    host: str
    port: int
    attacker_key: str = ""
    good_key: str = ""

    @property
    def url(self) -> str:
        """URL of the service."""
        return f"http://{self.host}:{self.port}"

    @property
    def attacker_headers(self) -> dict[str, str]:
        """What an attacker sends with each request."""
        return {"X-Api-Key": self.attacker_key} if self.attacker_key else {}


Attack = Callable[[Target, float], Awaitable[Counter[str]]]
"""Runs an attack for some seconds and counts the responses by status."""


def many_scans(scans: int) -> bytes:
    """Return a progressive JPEG of 49 megapixels with so many scans, 1.8 MB for 20,000."""
    return jpeg_with_scans(
        saved(flat(7000, 7000).convert("L"), "JPEG", progressive=True, quality=50), scans
    )


def megapixel() -> bytes:
    """Return a JPEG of one megapixel that is like a photo."""
    return saved(photo(1160, 864), "JPEG", quality=90)


async def repeated(
    target: Target, seconds: float, clients: int, content: bytes, path: str, headers: dict[str, str]
) -> Counter[str]:
    """Let clients send the same request repeatedly, whatever the response."""
    answered: Counter[str] = Counter()
    end = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)

    async def client(http: httpx.AsyncClient) -> None:
        while time.monotonic() < end:
            try:
                answer = await http.post(
                    path, content=content, headers=headers | target.attacker_headers
                )
                answered[str(answer.status_code)] += 1
            except httpx.HTTPError as error:
                answered[type(error).__name__] += 1

    async with httpx.AsyncClient(base_url=target.url, timeout=90, limits=limits) as http:
        tasks = [asyncio.create_task(client(http)) for _ in range(clients)]
        _, left = await asyncio.wait(tasks, timeout=seconds + 1)
        for task in left:  # an attacker does not wait for the end
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        answered["unanswered"] += len(left)
    return answered


def sending(
    clients: int,
    content: Callable[[], bytes],
    path: str = "/v1/tag",
    kind: str = "application/octet-stream",
) -> Attack:
    """Return an attack by requests."""

    async def attack(target: Target, seconds: float) -> Counter[str]:
        return await repeated(target, seconds, clients, content(), path, {"Content-Type": kind})

    return attack


def form(images: list[bytes]) -> bytes:
    """Return a multipart form of images; the boundary is `b`."""
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
    return b"".join(head + image + b"\r\n" for image in images) + b"--b--\r\n"


def score_bomb() -> bytes:
    """Return a request for all scores of a thousand embeddings and a thousand labels."""
    rng = random.Random(0)
    embeddings = [[round(rng.gauss(0, 1), 3) for _ in range(width_of_demo())] for _ in range(1024)]
    labels = [f"label {number}" for number in range(1000)]
    return json.dumps(
        {"embeddings": embeddings, "labels": labels, "confidence_threshold": 0, "max_tags": 1000}
    ).encode()


def width_of_demo() -> int:
    """Return D of the demo checkpoint."""
    return load_checkpoint(demo_settings.demo_config().siglip.model_source, None).embedding_width


def scores(count: int) -> bytes:
    """Return a legal request whose response is as large as may be."""
    rows = np.random.default_rng(0).normal(size=(count, width_of_demo())).round(3).tolist()
    labels = [f"a label of some length, number {number}" for number in range(60)]
    return json.dumps(
        {"embeddings": rows, "labels": labels, "confidence_threshold": 0, "max_tags": 60}
    ).encode()


async def unread(target: Target, seconds: float) -> Counter[str]:
    """Request large responses on many connections and read none of them."""
    body = scores(1000)
    headers = {
        "Host": "x",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    } | target.attacker_headers
    head = "".join(
        [
            "POST /v1/score HTTP/1.1\r\n",
            *(f"{name}: {value}\r\n" for name, value in headers.items()),
            "\r\n",
        ]
    )
    answered: Counter[str] = Counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection(target.host, target.port, limit=1024)
        with contextlib.suppress(OSError):
            writer.write(head.encode() + body)
            await writer.drain()
            answered["asked"] += 1
            status_line = (await reader.readline()).decode(errors="replace").strip()
            answered[status_line[9:12] or "closed"] += 1
            await asyncio.sleep(NO_READING_S)

    tasks = [asyncio.create_task(client()) for _ in range(48)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return answered


async def idle(target: Target, seconds: float) -> Counter[str]:
    """Hold five thousand connections open and send nothing."""
    answered: Counter[str] = Counter()
    end = time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < end:
            try:
                reader, writer = await asyncio.open_connection(target.host, target.port)
            except OSError as error:
                answered[type(error).__name__] += 1
                await asyncio.sleep(1)
                continue
            with contextlib.suppress(OSError):
                await reader.read(1)
            writer.close()
            answered["closed by the service"] += 1

    tasks = [asyncio.create_task(client()) for _ in range(5000)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return answered


def unknown_keys() -> bytes:
    """Return 38 MB of unknown JSON keys."""
    return b"{" + b",".join(b'"k%d":%d' % (number, number) for number in range(2_300_000)) + b"}"


ATTACKS: dict[str, Attack] = {
    "20,000 JPEG scans": sending(4, lambda: many_scans(20_000)),
    "1 x 49M PNG, 95 KB": sending(4, lambda: png((1, 32_768 * 1024), 2, 8)),
    "16-bit RGBA PNG of 16 MP": sending(8, lambda: png((4000, 4000), 6, 16)),
    "64 PNGs of 6 MP, quality=high": sending(
        2,
        lambda: form([png((3000, 2000), 2, 8)] * 64),
        "/v1/tag?quality=high",
        "multipart/form-data; boundary=b",
    ),
    "1,024 x 1,000 scores": sending(4, score_bomb, "/v1/score", "application/json"),
    "48 large responses unread": unread,
    "80 bodies of 60 MB": sending(
        80, lambda: b'{"image": "' + b"A" * (60 * MIB) + b'"}', kind="application/json"
    ),
    "38 MB of unknown keys": sending(4, unknown_keys, kind="application/json"),
    "15M labels": sending(
        4,
        lambda: b'{"image": "", "labels": "' + b"a," * 15_000_000 + b'"}',
        kind="application/json",
    ),
    "5,000 idle connections": idle,
    "8 clients x 64 images of 1 MP": sending(
        8,
        lambda: form([saved(photo(1160, 864), "JPEG", quality=90)] * 64),
        kind="multipart/form-data; boundary=b",
    ),
    "700 clients": sending(700, lambda: GOOD),
}


@dataclass(slots=True)
class Good:
    """What the good client saw.

    Attributes:
        seconds: Duration of each request.
        answered: Number of responses by status.
    """

    seconds: list[float] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)

    def percentile(self, percent: float) -> float:
        """Return a percentile of the times, in milliseconds."""
        return float(np.percentile(self.seconds, percent)) * 1000 if self.seconds else float("nan")


async def behave(target: Target, seconds: float, good: Good) -> None:
    """Send one small image at a time, from a separate address."""
    transport = httpx.AsyncHTTPTransport(local_address=GOOD_ADDRESS)
    headers = {"X-Api-Key": target.good_key} if target.good_key else {}
    end = time.monotonic() + seconds
    async with httpx.AsyncClient(
        base_url=target.url, timeout=60, transport=transport, headers=headers
    ) as http:
        while time.monotonic() < end:
            started = time.perf_counter()
            try:
                answer = await http.post("/v1/tag", content=GOOD)
                good.answered[str(answer.status_code)] += 1
            except httpx.HTTPError as error:
                good.answered[type(error).__name__] += 1
            good.seconds.append(time.perf_counter() - started)
            await asyncio.sleep(GOOD_PAUSE_S)


def memory_mib(service: Service) -> dict[str, int]:
    """Return the memory of every process in MiB without shared pages, by its name."""
    found: dict[str, int] = {}
    for process in service.children():
        with contextlib.suppress(psutil.Error):
            name = (
                process.name().removeprefix("ray::").removeprefix("ServeReplica:").partition(".")[0]
            )
            found[name] = found.get(name, 0) + process.memory_full_info().uss // MIB
    return found


def _attack(name: str, target: Target, seconds: float, queue: "multiprocessing.Queue[Any]") -> None:
    os.nice(NICE)
    queue.put(asyncio.run(ATTACKS[name](target, seconds)))


@dataclass(slots=True)
class Outcome:
    """One attack and its result."""

    name: str
    good: Good
    attacker: Counter[str]
    peak_mib: dict[str, int]
    after_mib: dict[str, int]


async def run_attack(
    service: Service, target: Target, name: str, seconds: float, settle_s: float = SETTLE_S
) -> Outcome:
    """Attack for some seconds during a good client's requests, and measure memory later."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[Any] = context.Queue()
    attacker = context.Process(target=_attack, args=(name, target, seconds, queue))
    good = Good()
    peak = memory_mib(service)
    attacker.start()
    await asyncio.sleep(1.5)  # it imports and makes its content
    behaving = asyncio.create_task(behave(target, seconds, good))
    while not behaving.done():
        for process, mib in (await asyncio.to_thread(memory_mib, service)).items():
            peak[process] = max(mib, peak.get(process, 0))
        await asyncio.sleep(MEMORY_EVERY_S)
    answered = await asyncio.to_thread(queue.get, True, 400)
    attacker.join()
    await asyncio.sleep(settle_s)
    return Outcome(name, good, answered, peak, memory_mib(service))


async def measure(seconds: float, names: list[str], ingress: str) -> dict[str, Any]:
    """Run attacks and return their results."""
    config = demo_config()
    config["serving"]["ingress"] = ingress
    service = await asyncio.to_thread(lambda: Service(config).wait_until_ready())
    try:
        target = Target("127.0.0.1", service.config["serving"]["port"])
        await behave(target, 3, Good())
        alone = Good()
        await behave(target, seconds, alone)
        before = memory_mib(service)
        outcomes = []
        for name in names:
            outcomes.append(await run_attack(service, target, name, seconds))
            print_outcome(outcomes[-1], alone, before)
        return {"alone": alone, "before": before, "outcomes": outcomes}
    finally:
        service.stop()


def print_outcome(outcome: Outcome, alone: Good, before: dict[str, int]) -> None:
    """Print the result of one attack as a line."""
    p99_ms = outcome.good.percentile(99)
    print(
        f"{outcome.name}: p99 {p99_ms:.0f} ms ({p99_ms / alone.percentile(99):.1f} x), "
        f"good {dict(outcome.good.answered)}, attacker {dict(outcome.attacker)}, "
        f"peak {sum(outcome.peak_mib.values())} MiB, after {sum(outcome.after_mib.values())}, "
        f"before {sum(before.values())}; grown since: {_grown(outcome.after_mib, before)}",
        flush=True,
    )


def _grown(after: dict[str, int], before: dict[str, int]) -> str:
    """Return the processes that have grown most since, the largest growth first."""
    grown = {name: mib - before.get(name, 0) for name, mib in after.items()}
    largest = sorted(grown.items(), key=lambda one: -one[1])[:4]
    return ", ".join(f"{name} {mib:+}" for name, mib in largest)


def report(found: dict[str, Any]) -> None:
    """Print the table."""
    alone: Good = found["alone"]
    table = Table(
        "attack",
        "good p50 ms",
        "good p99 ms",
        "x alone",
        "good answers",
        "attacker's",
        "peak MiB",
        "after MiB",
        box=None,
    )
    before = found["before"]
    p50 = f"{alone.percentile(50):.0f}"
    p99 = f"{alone.percentile(99):.0f}"
    table.add_row(
        "none", p50, p99, "1", _counted(alone.answered), "", "", f"{sum(before.values())}"
    )
    for one in found["outcomes"]:
        grown = {name: mib - before.get(name, 0) for name, mib in one.peak_mib.items()}
        largest = max(grown, key=lambda name: grown[name])
        table.add_row(
            one.name,
            f"{one.good.percentile(50):.0f}",
            f"{one.good.percentile(99):.0f}",
            f"{one.good.percentile(99) / alone.percentile(99):.1f}",
            _counted(one.good.answered),
            _counted(one.attacker),
            f"{sum(one.peak_mib.values())} ({largest} {one.peak_mib[largest]})",
            f"{sum(one.after_mib.values())}",
        )
    Console(width=220).print(table)
    rows = [
        {
            "attack": one.name,
            "p99_ms": round(one.good.percentile(99), 1),
            "good": dict(one.good.answered),
        }
        for one in found["outcomes"]
    ]
    found_all = {
        "alone_p99_ms": round(alone.percentile(99), 1),
        "median_ms": round(statistics.median(alone.seconds) * 1000, 1),
        "rows": rows,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    print(json.dumps(found_all))


def _counted(answered: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in answered.most_common(4) if count)


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="duration of each attack")
    parser.add_argument("--only", help="part of an attack's name")
    parser.add_argument("--ingress", choices=("auto", "haproxy", "python"), default="auto")
    given = parser.parse_args()
    names = [name for name in ATTACKS if given.only is None or given.only in name]
    report(asyncio.run(measure(given.seconds, names, given.ingress)))


if __name__ == "__main__":
    main()
