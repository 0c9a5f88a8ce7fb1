"""The route table. Each route is written once, with its document and the shape of its errors.

A module of endpoints collects its routes in a `Routes`; `app.py` puts them into one `RouteTable`.

Not here: the OpenAPI document that is made from the table (`document.py`), the responses to errors
(`error_responses.py`).
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from serve_app.api.error_shapes import ErrorShape, own_shape

Endpoint = Callable[[Request], Awaitable[Response]]
Responses = Mapping[int | str, Mapping[str, Any]]
Register = Callable[[Endpoint], Endpoint]
"""A decorator that adds an endpoint and returns it unchanged."""
READING_METHODS = ("GET", "HEAD", "OPTIONS")
"""Methods that read only. Open routes answer them without an API key."""


@dataclass(frozen=True, slots=True)
class Operation:
    """The OpenAPI document of one route.

    Attributes:
        summary: One line.
        request: `parameters` and `requestBody`, as OpenAPI writes them.
        responses: The responses by status. 200 is JSON by default.
        operation_id: Name of the operation in generated clients; derived from the endpoint's name
            and the path by default.
    """

    summary: str
    request: Mapping[str, Any] = field(default_factory=dict)
    responses: Responses = field(default_factory=dict)
    operation_id: str | None = None


class ApiRoute(Route):
    """A Starlette route that also has a document, an error shape and whether it is open."""

    def __init__(
        self,
        path: str,
        endpoint: Endpoint,
        method: str,
        *,
        error_shape: ErrorShape = own_shape,
        is_open: bool = False,
        operation: Operation | None = None,
    ) -> None:
        """Make a route.

        Args:
            path: Its path, with parameters in Starlette's form.
            endpoint: Answers its requests.
            method: GET or POST. GET implies HEAD.
            error_shape: The JSON of its errors.
            is_open: Whether it can be read without an API key and without a place in the budgets.
            operation: Its document; None if it is not documented.
        """
        super().__init__(path, endpoint, methods=[method], include_in_schema=operation is not None)
        self.method = method
        self.error_shape = error_shape
        self.is_open = is_open
        self.operation = operation


class Routes:
    """Collects the routes of one module, whose errors all have the same shape."""

    def __init__(self, error_shape: ErrorShape = own_shape) -> None:
        """Start with no route."""
        self.collected: list[ApiRoute] = []
        self._error_shape = error_shape

    def get(self, path: str, *, is_open: bool = False, **operation: Any) -> Register:
        """Return a decorator that adds an endpoint for GET and HEAD.

        Args:
            path: The path.
            is_open: Whether the route needs no API key.
            operation: The fields of its `Operation`; none for an undocumented route.
        """
        return self._register(path, "GET", is_open, operation)

    def post(self, path: str, **operation: Any) -> Register:
        """Return a decorator that adds an endpoint for POST; see `get` for the arguments."""
        return self._register(path, "POST", False, operation)

    def _register(
        self, path: str, method: str, is_open: bool, operation: dict[str, Any]
    ) -> Register:
        document = Operation(**operation) if operation else None

        def register(endpoint: Endpoint) -> Endpoint:
            """Add the endpoint and return it unchanged."""
            route = ApiRoute(
                path,
                endpoint,
                method,
                error_shape=self._error_shape,
                is_open=is_open,
                operation=document,
            )
            self.collected.append(route)
            return endpoint

        return register


class RouteTable:
    """All routes of the application, and what applies to a request before its route runs."""

    def __init__(self, routes: Sequence[ApiRoute]) -> None:
        """Take the routes in the order in which they are matched."""
        self.routes = tuple(routes)

    def nearest(self, scope: Scope) -> ApiRoute | None:
        """Return the route of a request, or else the route of the nearest path above its path.

        `/v2/unknown` belongs to `/v2`, so its 404 has the shape that clients of `/v2` read. Every
        path is below `/`, so `/` counts only for itself.
        """
        prefix = scope.get("root_path", "").rstrip("/")
        path = scope["path"].removeprefix(prefix)
        while path:
            found = self._matching({**scope, "path": prefix + path})
            if found:
                return found[0]
            path = path.rpartition("/")[0]
        return None

    def error_shape(self, scope: Scope) -> ErrorShape:
        """Return the shape of a request's errors: that of its route, or of the nearest one."""
        route = scope.get("route") or self.nearest(scope)
        return own_shape if route is None else route.error_shape

    def is_open(self, scope: Scope) -> bool:
        """Return whether a request may pass without an API key and without a place in the
        budgets.
        """
        if scope["method"] not in READING_METHODS:
            return False
        route = self.nearest({**scope, "method": "GET"})
        return route is not None and route.is_open and "GET" in (route.methods or ())

    def methods(self, scope: Scope) -> list[str]:
        """Return the methods of a path, sorted; none if the path has no route."""
        return sorted({method for route in self._matching(scope) for method in route.methods or ()})

    def _matching(self, scope: Scope) -> list[ApiRoute]:
        """Return the routes of a path; one that also has the request's method comes first."""
        matches = [(route, route.matches(scope)[0]) for route in self.routes]
        full = [route for route, match in matches if match is Match.FULL]
        return full + [route for route, match in matches if match is Match.PARTIAL]
