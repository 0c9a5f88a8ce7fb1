"""Sends thousands of requests, some of them bad, to a service with full queues.

`python -m bench.soak --requests 10000` starts the demo service with short queues, sends requests
from more clients than they hold, and prints what came back. No request may be lost, hang, or get a
wrong response, and the memory of the replicas must not grow.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.demo_inputs import draw_images
from serve_app.demo.settings import demo_labels
from tests.hostile_images import corpus
from tests.service import Service

TIMEOUT_S = 90.0
MAX_TRIES = 200
MIB = 2**20
MAX_GROWTH_MIB = 150
"""Growth of all replicas in the second half; allocators of four processes vary by some tens."""
SHORT_QUEUES = {"max_ongoing_requests": 48, "max_queued_requests": 16}


@dataclass(frozen=True)
class Trial:
    """A request, and the response that it must get.

    Attributes:
        name: What the request is.
        content: Its body.
        statuses: Statuses that the response may have.
        path: Its path and query.
        headers: Its headers.
        labels: Labels that a response of 200 must have; None for any.
    """

    name: str
    content: bytes
    statuses: tuple[int, ...]
    path: str = "/v1/tag"
    headers: dict[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None


@dataclass
class Soak:
    """What came back.

    Attributes:
        answered: Number of requests by the status of their last response.
        refused: Number of responses of 429, after which the request was retried.
        wrong: Requests with a wrong response, and what was wrong.
        seconds: Duration of the run.
        replicas_mib: Memory of all replicas at the start, in the middle and at the end.
    """

    answered: Counter[int] = field(default_factory=Counter)
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    replicas_mib: list[int] = field(default_factory=list)


def bad_requests() -> list[Trial]:
    """Return hostile images and malformed requests; hardly any of them can be tagged."""
    multipart = {"Content-Type": "multipart/form-data; boundary=b"}
    as_json = {"Content-Type": "application/json"}
    others = [
        Trial("unknown parameter", b"x", (400,), "/v1/tag?labls=a"),
        Trial("unknown vocabulary", corpus()[0].data, (404,), "/v1/tag?vocabulary=nobody"),
        Trial("threshold out of bounds", b"x", (400,), "/v1/tag?confidence_threshold=7"),
        Trial("no JSON", b"{", (400,), headers=as_json),
        Trial("deep JSON", b"[" * 100_000, (400,), headers=as_json),
        Trial("JSON without an image", b"{}", (400,), headers=as_json),
        Trial(
            "a URL",
            b'{"image": "http://169.254.169.254/latest/meta-data/"}',
            (400,),
            headers=as_json,
        ),
        Trial(
            "broken form",
            b"--b\r\nContent-Disposition: form-data; name=",
            (400,),
            headers=multipart,
        ),
        Trial("no body", b"", (400,)),
        Trial("no such path", b"", (404,), "/v1/nothing"),
    ]
    return [
        Trial(one.name, one.data, (*one.statuses, 400) if not one.data else one.statuses)
        for one in corpus()
    ] + others


async def soak(service: Service, count: int, bad_share: float, clients: int) -> Soak:
    """Send requests to a running service; each client sends one at a time and retries refusals."""
    good = await _good_requests(service, _pictures())
    chance = random.Random(5)
    bad = bad_requests()
    asked = iter(
        [
            chance.choice(bad) if chance.random() < bad_share else chance.choice(good)
            for _ in range(count)
        ]
    )
    found = Soak(replicas_mib=[_replicas_mib(service)])
    started_s = time.perf_counter()

    async def client(connection: httpx.AsyncClient) -> None:
        for one in asked:
            await _ask(connection, one, found)
            if sum(found.answered.values()) == count // 2:
                found.replicas_mib.append(_replicas_mib(service))

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(
        base_url=service.url, timeout=TIMEOUT_S, limits=limits
    ) as connection:
        await asyncio.gather(*[client(connection) for _ in range(clients)])
    found.seconds = time.perf_counter() - started_s
    found.replicas_mib.append(_replicas_mib(service))
    return found


def _pictures() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return [Path(path).read_bytes() for path in draw_images(Path(folder))]


async def _good_requests(service: Service, pictures: list[bytes]) -> list[Trial]:
    """Return requests with the labels that the idle service gives them."""
    async with httpx.AsyncClient(base_url=service.url, timeout=TIMEOUT_S) as connection:
        answers = [
            (await connection.post("/v1/tag", content=picture)).json() for picture in pictures
        ]
    labels = [tuple(sorted(tag["label"] for tag in answer["tags"])) for answer in answers]
    return [
        Trial(f"scene {n}", picture, (200,), labels=own)
        for n, (picture, own) in enumerate(zip(pictures, labels, strict=True))
    ]


async def _ask(connection: httpx.AsyncClient, one: Trial, found: Soak) -> None:
    for _ in range(MAX_TRIES):
        try:
            answer = await connection.post(one.path, content=one.content, headers=one.headers)
        except httpx.HTTPError as error:
            found.wrong.append(f"{one.name}: {type(error).__name__}")
            found.answered[0] += 1
            return
        if answer.status_code != 429:
            break
        found.refused += 1
        if "retry-after" not in answer.headers:
            found.wrong.append(f"{one.name}: 429 without Retry-After")
        await asyncio.sleep(random.uniform(0.5, 1.5))
    found.answered[answer.status_code] += 1
    if problem := _problem(one, answer):
        found.wrong.append(f"{one.name}: {problem}")


def _problem(one: Trial, answer: httpx.Response) -> str | None:
    """Return what is wrong with an answer, if anything is."""
    if answer.status_code not in one.statuses:
        return f"{answer.status_code}, not {one.statuses}: {answer.text[:200]}"
    content: dict[str, Any] = answer.json()
    if answer.status_code != 200:
        is_complete = content["error"]["code"] and content["error"]["message"]
        return None if is_complete else "an error without a code"
    labels = tuple(sorted(tag["label"] for tag in content["tags"]))
    if one.labels is None or labels == one.labels:
        return None
    return f"{labels}, not {one.labels}"


def _replicas_mib(service: Service) -> int:
    """Return the memory of all replicas in MiB, without shared pages."""
    names = ("Preprocessor", "ImageEncoder", "TextEncoder", "Postprocessor")
    return (
        sum(replica.memory_full_info().uss for name in names for replica in service.replicas(name))
        // MIB
    )


def demo_with_short_queues() -> dict[str, Any]:
    """Return the demo's configuration with queues that fill."""
    return {
        "name": "siglip-soak",
        "labels": demo_labels(),
        "plugins": {"siglip": {"model": "demo", "confidence_threshold": 0.5}},
        "serving": {
            "preprocessor": {"num_cpus": 0.5, **SHORT_QUEUES},
            "image_encoder": {"num_cpus": 1},
            "text_encoder": {"num_cpus": 0.25},
            "postprocessor": {"num_cpus": 0.25},
        },
    }


def main() -> int:
    """Run as a program; the exit status is 1 if any answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--bad", type=float, default=0.1, help="part of the requests that are bad")
    parser.add_argument("--clients", type=int, default=128)
    given = parser.parse_args()
    service = Service(demo_with_short_queues())
    try:
        found = asyncio.run(
            soak(service.wait_until_ready(), given.requests, given.bad, given.clients)
        )
    finally:
        service.stop()
    print(
        json.dumps(
            vars(found) | {"wrong": found.wrong[:20], "wrong_count": len(found.wrong)}, indent=1
        )
    )
    return int(bool(found.wrong) or found.replicas_mib[-1] - found.replicas_mib[1] > MAX_GROWTH_MIB)


if __name__ == "__main__":
    sys.exit(main())
