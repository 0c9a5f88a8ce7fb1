"""The page over the demo checkpoint, in a real headless Chromium that is watched while it shows
it.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, sync_playwright
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.app import create_app
from serve_app.config.plugin import DEMO_MODEL
from serve_app.config.service import parse_config
from serve_app.demo.settings import demo_config, demo_labels
from serve_app.pipeline.local_tagger import LocalTagger
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.identity import checkpoint_fingerprint
from serve_app.tagging.calibration import Calibration, Fit, write_calibration
from serve_app.tagging.prompts import DEFAULT_TEMPLATE
from tests.http_face import served

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ANSWERED_ERROR = "Failed to load resource: the server responded with a status of"
"""Chromium writes this for every answer that is an error, also for one that the page then shows."""
RECORD = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
window.objectUrls = new Set();
const { createObjectURL, revokeObjectURL } = URL;
URL.createObjectURL = (blob) => {
  const url = createObjectURL.call(URL, blob);
  window.objectUrls.add(url);
  return url;
};
URL.revokeObjectURL = (url) => { window.objectUrls.delete(url); revokeObjectURL.call(URL, url); };
"""


@dataclass
class Gate:
    """Pure ASGI before the service: asks for a key, refuses, delays, and counts, as a test tells it
    to.

    Attributes:
        key: What `Authorization: Bearer` must carry; None for nothing.
        refusals: Status and `Retry-After` of the next requests to tag, the first one first.
        delay_s: How long each request to tag takes at least.
        queries: Query strings of the requests to tag.
    """

    app: ASGIApp
    key: str | None = None
    refusals: list[tuple[int, str]] = field(default_factory=list)
    delay_s: float = 0.0
    queries: list[str] = field(default_factory=list)
    running: int = 0
    most_at_once: int = 0

    def reset(self) -> None:
        self.key = None
        self.refusals = []
        self.delay_s = 0.0
        self.queries = []
        self.most_at_once = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        given = dict(scope.get("headers", ())).get(b"authorization", b"").decode()
        if path.startswith("/v1/") and self.key is not None and given != f"Bearer {self.key}":
            await _refuse(401, {}, "unauthorized", "This service needs a key.")(
                scope, receive, send
            )
        elif path == "/v1/tag":
            await self._tag(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _tag(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.queries.append(scope["query_string"].decode())
        if self.refusals:
            status, after = self.refusals.pop(0)
            await _refuse(status, {"Retry-After": after}, "overloaded", "Every queue is full.")(
                scope, receive, send
            )
        else:
            await self._counted(scope, receive, send)

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)

        async def then_out(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.running -= 1
            await send(message)

        await asyncio.sleep(self.delay_s)
        await self.app(scope, receive, then_out)


def _refuse(status: int, headers: dict[str, str], code: str, message: str) -> ASGIApp:
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)


@pytest.fixture(scope="package")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """The service over the demo checkpoint: its own labels, and the vocabulary `colours`, which is
    calibrated.
    """
    folder = tmp_path_factory.mktemp("vocabularies")
    calibration = Calibration(
        method="platt",
        checkpoint=checkpoint_fingerprint(load_checkpoint(demo_config().siglip.model_source)),
        prompt_templates=(DEFAULT_TEMPLATE,),
        images=9,
        threshold=0.2,
        tags={"red": Fit(offset=-2.0)},
    )
    write_calibration(calibration, folder / "calibration.yaml")
    (folder / "colours.txt").write_text("red\nblue\nyellow\nwhite\n")
    data = {
        "vocabularies": {
            "shapes": demo_labels(),
            "colours": {"file": "colours.txt", "calibration": "calibration.yaml"},
        },
        "default_vocabulary": "shapes",
        "plugins": {
            "siglip": {
                "model": DEMO_MODEL,
                "dtype": "float32",
                "confidence_threshold": 0.5,
                "max_tags": 20,
            }
        },
        "telemetry": {"request_log": "off"},
    }
    config = parse_config(data, folder)
    return Gate(create_app(LocalTagger(config), config))


@pytest.fixture(scope="package")
def address(gate: Gate) -> Iterator[str]:
    """Where the service listens."""
    with served(gate) as url:
        yield url


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A Chromium; it ends before other folders' tests, since playwright's loop runs as long as it
    does.
    """
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}; install Debian's package chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@dataclass
class Watched:
    """A tab, and what went wrong in it since the list was cleared."""

    page: Page
    address: str
    troubles: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("response", self._on_response)
        self.page.on("request", self._on_request)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(ANSWERED_ERROR):
            self.troubles.append(message.text)

    def _on_response(self, response: Response) -> None:
        if urlsplit(response.url).path.startswith("/page") and response.status not in (200, 304):
            self.troubles.append(f"{response.status} {response.url}")

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((f"{self.address}/", f"blob:{self.address}/")):
            self.troubles.append(f"asked another host: {request.url}")


@pytest.fixture(scope="package")
def tab(browser: Browser, address: str) -> Iterator[Watched]:
    """One tab for all tests: a new one for each would take half of their time."""
    context = browser.new_context(base_url=address, reduced_motion="reduce")
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    context.set_default_timeout(10_000)
    context.add_init_script(RECORD)
    yield Watched(context.new_page(), address)
    context.close()


@pytest.fixture
def page(tab: Watched, gate: Gate) -> Iterator[Page]:
    """The page, just opened by somebody new; fails the test on a broken policy, an error in the
    console, or a request to another host.
    """
    gate.reset()
    page = tab.page
    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(color_scheme="light")
    page.goto("/healthz")
    page.evaluate("sessionStorage.clear(); localStorage.clear()")
    tab.troubles.clear()
    page.goto("/")
    page.get_by_text("demo · 64 px").wait_for()
    yield page
    assert [*tab.troubles, *page.evaluate("window.violations")] == []
