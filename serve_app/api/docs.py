"""`/docs` and `/openapi.json`: Swagger UI, with no asset from another host and a policy that allows
none.
"""

import base64
import hashlib
import re
from pathlib import Path

import swagger_ui_bundle
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse

ASSETS = "/docs/assets"


def add_docs(app: FastAPI) -> None:
    """Add the page; `/openapi.json` is FastAPI's own."""
    files = {
        path.name: path
        for path in Path(swagger_ui_bundle.swagger_ui_path).iterdir()
        if path.is_file()
    }
    page = get_swagger_ui_html(
        openapi_url="openapi.json",  # relative, as all of them: the service may stand below a prefix
        title="siglip-serve",
        swagger_js_url=f"{ASSETS[1:]}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS[1:]}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS[1:]}/favicon-32x32.png",
    )
    headers = {"content-security-policy": _policy(bytes(page.body).decode())}

    @app.get(f"{ASSETS}/{{name}}", include_in_schema=False)
    async def asset(name: str) -> FileResponse:
        if name not in files:
            raise HTTPException(404)
        return FileResponse(files[name])

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(bytes(page.body), headers=headers)


def _policy(html: str) -> str:
    """Return a policy that lets run what stands in a page now, and nothing that would come into
    it.
    """
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    return (
        f"default-src 'none'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
