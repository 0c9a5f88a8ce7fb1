"""The page at `/`: drop images and see their tags.

Its files in `page_assets/` are served as they are; there is no build step. The page calls this
service by the same routes as every client.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.routes import ApiRoute, Responses, Routes

ASSETS = Path(__file__).with_name("page_assets")
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Content types, which browsers require with `nosniff`. Other files are not served."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # browsers store the files and revalidate them by ETag, so a new version is seen at once
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class _Asset:
    """A file of the page in memory. Its ETag is a hash of its bytes, so all nodes have the same."""

    body: bytes
    media_type: str
    etag: str

    def response(self, request: Request) -> Response:
        """Return the file, or 304 if the browser already has it."""
        headers = HEADERS | {"ETag": self.etag}
        known = (
            tag.strip().removeprefix("W/")
            for tag in request.headers.get("if-none-match", "").split(",")
        )
        if self.etag in known:
            return Response(status_code=304, headers=headers)
        return Response(self.body, media_type=self.media_type, headers=headers)


def page_routes() -> list[ApiRoute]:
    """Return the routes of the page, `GET /`, and of its files below `/page/`."""
    routes = Routes()
    paths = sorted(path for path in ASSETS.iterdir() if path.suffix in MEDIA_TYPES)
    assets = {path.name: _read(path) for path in paths}

    @routes.get("/", is_open=True, summary="The page", responses=_RESPONSES)
    async def index(request: Request) -> Response:
        return assets["index.html"].response(request)

    @routes.get("/page/{name}", is_open=True)
    async def asset(request: Request) -> Response:
        found = assets.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404)
        return found.response(request)

    return routes.collected


_RESPONSES: Responses = {
    200: {"content": {"text/html": {"schema": {"type": "string"}}}},
    304: {"description": "The browser already has the page."},
}


def _read(path: Path) -> _Asset:
    body = path.read_bytes()
    return _Asset(body, MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:16]}"')
