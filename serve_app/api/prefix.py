"""A service below a path: several may stand side by side on one address, each under its own prefix.

Everything behind this sees the paths that are documented, whatever stands before them. Pure ASGI.
"""

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class WithoutPrefix:
    """Takes the prefix that a server names in `root_path` off the path of each request.

    The prefix alone is sent on to the prefix with a slash, from which the page's relative links
    lead to its files.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        prefix = scope.get("root_path", "").rstrip("/") if scope["type"] == "http" else ""
        path = scope.get("path", "")
        if not prefix or not (path == prefix or path.startswith(f"{prefix}/")):
            await self._app(scope, receive, send)
        elif path == prefix and scope["method"] in ("GET", "HEAD"):
            await RedirectResponse(f"{prefix}/")(scope, receive, send)
        else:
            await self._app({**scope, "path": path.removeprefix(prefix) or "/"}, receive, send)
