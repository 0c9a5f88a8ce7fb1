"""Every query of the dashboard and of docs/monitoring.md on a real Prometheus that scraped a real
service under mixed load.
"""

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from serve_app.demo import scenes
from tests.conftest import encoded
from tests.dashboard import DASHBOARD, QUERIES, ROOT, examples, substituted
from tests.prometheus import COMMAND, SCRAPE_INTERVAL_S, Labels, Prometheus
from tests.service import METRIC_DELAY_S, Service

pytestmark = pytest.mark.skipif(
    COMMAND is None, reason="prometheus is not installed (Debian: apt-get install prometheus)"
)

APPLICATION = "siglip-demo"
NEEDS_GPU = ("GPU memory", "GPU memory used of its limit")
"""Panels that have no data on a machine without a GPU, and no others."""
EXAMPLES = [("example", expr) for expr in examples((ROOT / "docs/monitoring.md").read_text())]
ROUNDS = 4
LATE_S = 45.0
"""In which what was counted must be in Prometheus; Ray's numbers come about 10 s late."""

PICTURE = scenes.draw(next(iter(scenes.sample_scenes(3, 1, scenes.SEEN))), 320, 240)
JPEG, PNG, WEBP = (encoded(PICTURE, kind) for kind in ("JPEG", "PNG", "WEBP"))


@dataclass(frozen=True)
class Sent:
    """A request, and what is to be counted of it.

    Attributes:
        path: With `{n}` for the round's number.
        status: Of the answer.
        route: As documented.
        body: A picture, or JSON; None for a GET.
        image: Outcome and format, where there is an image.
        code: Of the error, if it is one.
    """

    path: str
    status: int
    route: str = "/v1/tag"
    body: bytes | dict[str, Any] | None = None
    image: tuple[str, str] | None = None
    code: str | None = None

    def send(self, client: httpx.Client, number: str) -> None:
        path = self.path.replace("{n}", number)
        body = self.body
        if body is None:
            answer = client.get(path)
        elif isinstance(body, bytes):
            answer = client.post(path, content=body)
        else:
            answer = client.post(
                path, json={key: value.replace("{n}", number) for key, value in body.items()}
            )
        assert answer.status_code == self.status, answer.text


ROUND = (
    Sent("/v1/tag", 200, body=JPEG, image=("ok", "jpeg")),
    Sent("/v1/tag", 200, body=PNG, image=("ok", "png")),
    Sent("/v1/tag", 200, body=WEBP, image=("ok", "webp")),
    Sent("/v1/tag?labels=lamp {n},chair {n}", 200, body=JPEG, image=("ok", "jpeg")),
    Sent("/v1/tag?labels=lamp {n},chair {n}", 200, body=JPEG, image=("ok", "jpeg")),
    Sent(
        "/v1/tag",
        415,
        body=b"no picture at all",
        image=("unsupported_image", "other"),
        code="unsupported_image",
    ),
    Sent("/v1/tag", 422, body=JPEG[:200], image=("invalid_image", "jpeg"), code="invalid_image"),
    Sent(
        "/v1/tag?vocabulary=none",
        404,
        body=PNG,
        image=("unknown_vocabulary", "png"),
        code="unknown_vocabulary",
    ),
    Sent("/nothing", 404, route="other", code="not_found"),
    Sent(
        "/v1/embeddings",
        200,
        route="/v1/embeddings",
        body={"model": "demo", "input": "a text of round {n}"},
    ),
)
NEW_TEXTS = 3
"""Texts of a round that no round before had: two labels and one to embed."""

COUNTS = {
    "requests": ("sum by (route, status) (ray_siglip_http_requests_total)", ("route", "status")),
    "images": ("sum by (outcome, format) (ray_siglip_images_total)", ("outcome", "format")),
    "refusals": ("sum by (code) (ray_siglip_refusals_total)", ("code",)),
    "texts": ('sum by (result) (ray_siglip_text_cache_rows_total{result="miss"})', ("result",)),
    "encoded texts": (
        'sum by (deployment) (ray_siglip_encoder_items_total{deployment="TextEncoder"})',
        ("deployment",),
    ),
}
EXPECTED: dict[str, Counter[Labels]] = {
    "requests": Counter(
        {key: ROUNDS * n for key, n in Counter((s.route, str(s.status)) for s in ROUND).items()}
    ),
    "images": Counter(
        {key: ROUNDS * n for key, n in Counter(s.image for s in ROUND if s.image).items()}
    ),
    "refusals": Counter(
        {key: ROUNDS * n for key, n in Counter((s.code,) for s in ROUND if s.code).items()}
    ),
    "texts": Counter({("miss",): ROUNDS * NEW_TEXTS}),
    "encoded texts": Counter({("TextEncoder",): ROUNDS * NEW_TEXTS}),
}


def send_rounds(service: Service, name: str) -> None:
    """Send every request of a round, several times."""
    with httpx.Client(base_url=service.url, timeout=60) as client:
        for number in range(ROUNDS):
            for sent in ROUND:
                sent.send(client, f"{name}{number}")


def counted(prometheus: Prometheus) -> dict[str, Counter[Labels]]:
    """Return what Prometheus has of every count."""
    return {
        name: Counter(prometheus.values(expr, *labels)) for name, (expr, labels) in COUNTS.items()
    }


@dataclass(frozen=True)
class Measured:
    """A Prometheus that has everything, when it had, and what was counted of the requests sent."""

    prometheus: Prometheus
    at: float
    counts: dict[str, Counter[Labels]]


@pytest.fixture(scope="module")
def measured(running: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    """Send one load so that every series is there, and a second one that is counted: a rate needs a
    number to start from.
    """
    prometheus = Prometheus(running, tmp_path_factory.mktemp("prometheus"))
    try:
        prometheus.wait_until_scraping()
        send_rounds(running, "first")
        before = settled_counts(prometheus)
        send_rounds(running, "second")
        yield wait_for_counts(prometheus, before)
    finally:
        prometheus.stop()


def settled_counts(prometheus: Prometheus) -> dict[str, Counter[Labels]]:
    """Return the counts once they have stayed the same for longer than it takes from a replica to
    Prometheus.
    """
    counts = counted(prometheus)
    since = time.monotonic()
    deadline = time.monotonic() + 2 * LATE_S
    while not all(counts.values()) or time.monotonic() - since < METRIC_DELAY_S + SCRAPE_INTERVAL_S:
        assert time.monotonic() < deadline, f"the counts do not come or do not settle: {counts}"
        time.sleep(1)
        if (now := counted(prometheus)) != counts:
            counts = now
            since = time.monotonic()
    return counts


def wait_for_counts(prometheus: Prometheus, before: dict[str, Counter[Labels]]) -> Measured:
    """Wait until what was sent is counted and every query has data, or until it is too late; the
    tests say what is missing.
    """
    deadline = time.monotonic() + LATE_S
    while True:
        now = counted(prometheus)
        at = time.time()
        counts = {name: now[name] - before[name] for name in now}
        is_there = counts == EXPECTED and all(
            has_data(prometheus, expr, at) for title, expr in QUERIES if title not in NEEDS_GPU
        )
        if is_there or time.monotonic() > deadline:
            return Measured(prometheus, at, counts)
        time.sleep(1)


def has_data(prometheus: Prometheus, expr: str, at: float, application: str = APPLICATION) -> bool:
    """Say whether an expression has a finite number."""
    return any(
        math.isfinite(float(series["value"][1]))
        for series in prometheus.query(substituted(expr, application), at)
    )


@pytest.mark.parametrize("application", [APPLICATION, ".*"], ids=["chosen", "all"])
@pytest.mark.parametrize(("title", "expr"), [*QUERIES, *EXAMPLES])
def test_every_query_has_data(measured: Measured, title: str, expr: str, application: str) -> None:
    """Prometheus takes each query and has a finite number for it; without a GPU, those of GPUs are
    only taken.
    """
    is_there = has_data(measured.prometheus, expr, measured.at, application)
    assert is_there or title in NEEDS_GPU


def test_another_application_has_nothing(measured: Measured) -> None:
    """The filter works: for a name that is not there, only totals that start from 0 and what is of
    whole nodes have data.
    """
    found = {
        title
        for title, expr in QUERIES
        if has_data(measured.prometheus, expr, measured.at, "another")
    }
    assert found == {
        "Configurations refused",
        "Calls made again",
        "Processors of nodes",
        "Memory of nodes",
    }


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_what_was_sent(measured: Measured, name: str) -> None:
    """Requests by route and status, images by outcome and format, refusals by code, and new texts,
    each encoded once.
    """
    assert measured.counts[name] == EXPECTED[name]


def test_variable_offers_the_application(measured: Measured) -> None:
    """The list at the top of the dashboard has the application's name."""
    (definition,) = [
        v["definition"] for v in DASHBOARD["templating"]["list"] if v["name"] == "application"
    ]
    series, label = definition.removeprefix("label_values(").removesuffix(")").split(", ")
    assert measured.prometheus.label_values(series, label) == [APPLICATION]


def test_shown_shares_fit_what_was_sent(measured: Measured) -> None:
    """Four of ten requests of a round are the client's errors and none is ours; one replica of each
    deployment is healthy.
    """

    def shown(title: str) -> list[float]:
        values = [
            measured.prometheus.values(substituted(e, APPLICATION), at=measured.at)
            for t, e in QUERIES
            if t == title
        ]
        return [number for value in values for number in value.values()]

    assert shown("Errors") == pytest.approx([0.4, 0.0], abs=0.05)
    assert shown("Healthy replicas") == [4]
    (busy,) = [e for t, e in QUERIES if t == "Encoder busy"]
    by_deployment = measured.prometheus.values(
        substituted(busy, APPLICATION), "deployment", at=measured.at
    )
    assert set(by_deployment) == {("ImageEncoder",), ("TextEncoder",)}
    assert all(0 < share < 1 for share in by_deployment.values())
