"""`/docs` and `/openapi.json`: Swagger UI and the document that it shows.

The page loads nothing from other hosts, and its policy forbids it to.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

import swagger_ui_bundle
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from serve_app.api.document import openapi_document
from serve_app.api.routes import ApiRoute, Routes

SCRIPT = """
SwaggerUIBundle({
    url: 'openapi.json',
    dom_id: '#swagger-ui',
    deepLinking: true,
    showExtensions: true,
    showCommonExtensions: true,
    presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
})
"""
PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1.0">
<link rel="stylesheet" href="docs/assets/swagger-ui.css">
<link rel="icon" href="docs/assets/favicon-32x32.png">
<title>siglip-serve</title>
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script>{SCRIPT}</script>
</body>
</html>
"""
"""All addresses are relative: the service may be below a path prefix."""


def docs_routes(described: Sequence[ApiRoute], requires_keys: bool) -> list[ApiRoute]:
    """Return the routes of the documentation.

    Args:
        described: The routes that the document describes.
        requires_keys: Whether an API key is required.
    """
    routes = Routes()
    document = openapi_document(described, requires_keys)
    folder = Path(swagger_ui_bundle.swagger_ui_path)
    files = {path.name: path for path in folder.iterdir() if path.is_file()}
    headers = {"content-security-policy": _policy()}

    @routes.get("/openapi.json", is_open=True)
    async def openapi(request: Request) -> Response:
        prefix = request.scope.get("root_path", "")
        servers = {"servers": [{"url": prefix}]} if prefix else {}
        return JSONResponse(document | servers)

    @routes.get("/docs", is_open=True)
    async def docs(_: Request) -> Response:
        return HTMLResponse(PAGE, headers=headers)

    @routes.get("/docs/assets/{name}", is_open=True)
    async def asset(request: Request) -> Response:
        path = files.get(request.path_params["name"])
        if path is None:
            raise HTTPException(404)
        return FileResponse(path)

    return routes.collected


def _policy() -> str:
    """Return a content security policy that allows the page's own inline script and no other."""
    script_hash = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    directives = (
        "default-src 'none'",
        f"script-src 'self' 'sha256-{script_hash}'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return "; ".join(directives)
