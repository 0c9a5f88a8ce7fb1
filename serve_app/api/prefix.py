"""Middleware for a service below a path prefix: several services may share one address.

The server names the prefix in `root_path`, and Starlette's router takes it off each path.
"""

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class PrefixRoot:
    """Makes the prefix alone mean the root of the service.

    A browser is redirected to the prefix with a slash, from which the page's relative links lead to
    its files.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        root_path = scope.get("root_path", "")
        prefix = root_path.rstrip("/")
        is_root = bool(prefix) and scope["path"] == prefix
        if is_root and scope["method"] in ("GET", "HEAD"):
            await RedirectResponse(f"{prefix}/")(scope, receive, send)
            return
        if is_root or prefix != root_path:
            path = f"{prefix}/" if is_root else scope["path"]
            scope = {**scope, "root_path": prefix, "path": path}
        await self._app(scope, receive, send)
