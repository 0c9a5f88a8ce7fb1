"""The page at `/`: drop pictures, see their tags. Files as they lie in `page_assets/`, no build
step.

It speaks to this service by the same routes as every client. Not here: those routes (`app.py`).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

ASSETS = Path(__file__).with_name("page_assets")
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""What a browser needs to hear under `nosniff`; a file with another ending is not served."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept, and asked for again by its ETag: a new version is seen at once
}


@dataclass(frozen=True, slots=True)
class _Asset:
    """A file of the page in memory; its ETag follows from its bytes, so that it is the same on
    every node.
    """

    body: bytes
    media_type: str
    etag: str

    def answer(self, request: Request) -> Response:
        """Return the file, or 304 to a browser that has it."""
        headers = HEADERS | {"ETag": self.etag}
        known = (
            tag.strip().removeprefix("W/")
            for tag in request.headers.get("if-none-match", "").split(",")
        )
        if self.etag in known:
            return Response(status_code=304, headers=headers)
        return Response(self.body, media_type=self.media_type, headers=headers)


def add_page(app: FastAPI) -> None:
    """Add the page at `GET /` and its files below `/page/`."""
    assets = {
        path.name: _read(path) for path in sorted(ASSETS.iterdir()) if path.suffix in MEDIA_TYPES
    }

    async def index(request: Request) -> Response:
        return assets["index.html"].answer(request)

    async def asset(request: Request, name: str) -> Response:
        if name not in assets:
            raise HTTPException(404)
        return assets[name].answer(request)

    app.add_api_route("/", index, methods=["HEAD"], include_in_schema=False)
    app.add_api_route(
        "/",
        index,
        methods=["GET"],
        summary="The page",
        response_class=HTMLResponse,
        responses=_NOT_MODIFIED,
    )
    app.add_api_route("/page/{name}", asset, methods=["GET", "HEAD"], include_in_schema=False)


_NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "The browser has it."}}


def _read(path: Path) -> _Asset:
    body = path.read_bytes()
    return _Asset(body, MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:16]}"')
