"""How the page is served: its headers, its files, and what they may hold.

What it does is tested in tests/browser.
"""

import re

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.testclient import TestClient

from serve_app.api.admission import Admission
from serve_app.api.app import edge
from serve_app.api.application import Application
from serve_app.api.page import ASSETS, MEDIA_TYPES, page_routes
from serve_app.api.routes import Routes, RouteTable
from serve_app.config.limits import Limits

FILES = sorted(path.name for path in ASSETS.iterdir())
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@pytest.fixture(scope="module")
def client() -> TestClient:
    others = Routes()

    @others.post("/")
    async def posted(_: Request) -> Response:
        return JSONResponse("posted")

    routes = RouteTable([*others.collected, *page_routes()])
    limits = Limits()
    return TestClient(Application(routes, edge(routes, limits, admission=Admission(limits))))


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in FILES)])
def test_every_file_is_served_under_the_policy(client: TestClient, path: str) -> None:
    """With its media type and the strict headers, by GET and HEAD; nothing that lies there is
    forgotten.
    """
    response = client.get(path)
    assert response.status_code == 200
    assert (
        response.headers["content-type"]
        == MEDIA_TYPES["." + (path.rpartition(".")[2] if "." in path else "html")]
    )
    assert response.headers["content-security-policy"] == POLICY
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-cache"
    head = client.head(path)
    assert (head.status_code, head.content, head.headers["content-length"]) == (
        200,
        b"",
        str(len(response.content)),
    )


def test_a_browser_that_has_a_file_is_told_so(client: TestClient) -> None:
    """304 without a body to the same ETag, also a weak one among others; the file to another."""
    etag = client.get("/page/page.js").headers["etag"]
    for known in (etag, f"W/{etag}", f'"x", {etag}'):
        response = client.get("/page/page.js", headers={"If-None-Match": known})
        assert (response.status_code, response.content, response.headers["etag"]) == (
            304,
            b"",
            etag,
        )
    assert client.get("/page/page.js", headers={"If-None-Match": '"x"'}).status_code == 200
    assert client.get("/page/page.css").headers["etag"] != etag


def test_nothing_else_is_served(client: TestClient) -> None:
    """Neither what is not there nor what lies above; what others do at the same path is theirs."""
    for path in ("/page/none.js", "/page/", "/page/..%2Fpage.py", "/page/%2e%2e/page.py"):
        assert client.get(path).status_code == 404
    assert client.post("/").json() == "posted"


@pytest.mark.parametrize("name", FILES)
def test_files_ask_no_other_host_and_make_no_markup(name: str) -> None:
    """No address but SVG's namespace, no inline script or style, nothing that reads a text as
    markup or code.
    """
    text = (ASSETS / name).read_text()
    assert set(re.findall(r"https?://[^\s\"'`)]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text
    )
    if name.endswith(".html"):
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)
        assert set(re.findall(r'(?:src|href)="page/([^"]+)"', text)) <= set(FILES)
