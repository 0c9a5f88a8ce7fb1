"""Clients that keep asking a service in the pods' network, and what they were answered."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from serve_app.demo import settings as demo_settings
from tests.kubernetes.cluster import RayService

SAMPLES = [
    path.read_bytes()
    for path in sorted((Path(demo_settings.__file__).parent / "samples").glob("*.jpg"))
]
TIMEOUT_S = 75.0
PAUSE_S = 0.1
"""Pause of a client after each answer, so that the clients leave the processors to the pods."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One request: when it was sent and answered, and with which status or error, and
    vocabulary.
    """

    sent_s: float
    seconds: float
    outcome: str
    fingerprint: str = ""
    text: str = ""


@dataclass
class Load:
    """Keeps some clients asking while the block runs."""

    service: RayService
    key: str
    clients: int = 4
    answers: list[Answered] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(self.clients)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def _run(self, number: int) -> None:
        self.service.client.enter()
        with httpx.Client(
            base_url=self.service.url,
            headers={"X-Api-Key": self.key},
            timeout=TIMEOUT_S,
            trust_env=False,
        ) as client:
            while not self._ended.is_set():
                self.answers.append(
                    _ask(client, SAMPLES[(number + len(self.answers)) % len(SAMPLES)])
                )
                time.sleep(PAUSE_S)

    @property
    def outcomes(self) -> Counter[str]:
        """How many answers there were of each kind."""
        return Counter(one.outcome for one in self.answers)

    @property
    def failed(self) -> list[Answered]:
        """What was not answered with tags."""
        return [one for one in self.answers if one.outcome != "200"]

    def since(self, start_s: float) -> "list[Answered]":
        """Return the answers of requests that were sent after a moment (`time.monotonic`)."""
        return [one for one in self.answers if one.sent_s >= start_s]

    def wait_for_answers(self, count: int, timeout_s: float = 300.0) -> None:
        """Wait until so many more requests were answered with tags."""
        wanted = self.outcomes["200"] + count
        end_s = time.monotonic() + timeout_s
        while self.outcomes["200"] < wanted:
            assert time.monotonic() < end_s, (
                f"the service does not answer: {self.outcomes}, {self.failed[-3:]}"
            )
            time.sleep(0.2)


def _ask(client: httpx.Client, picture: bytes) -> Answered:
    started = time.monotonic()
    try:
        answer = client.post("/v1/tag", content=picture)
    except httpx.HTTPError as error:
        return Answered(started, time.monotonic() - started, type(error).__name__)
    seconds = time.monotonic() - started
    if answer.status_code != 200:
        return Answered(started, seconds, str(answer.status_code), text=answer.text[:200])
    return Answered(started, seconds, "200", answer.json()["vocabulary_fingerprint"])
