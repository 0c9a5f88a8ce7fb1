"""Builds the OpenAPI document from the route table.

Not here: the schemas and examples of requests and responses (`openapi.py`).
"""

import inspect
import re
from collections.abc import Iterable
from typing import Any

from serve_app import __version__
from serve_app.api.routes import ApiRoute, Operation

OPENAPI_VERSION = "3.0.3"
"""The bundled Swagger UI cannot show OpenAPI 3.1."""
DESCRIPTION = (
    "Tag images with SigLIP. `POST /v1/tag` takes an image as the body, files of a form, or JSON."
)
_BODY_TIMEOUT = {"description": "The body did not arrive in time."}
_NO_KEY = {"description": "The request has no API key, or an unknown one."}


def openapi_document(routes: Iterable[ApiRoute], requires_keys: bool) -> dict[str, Any]:
    """Return the document of all documented routes.

    Args:
        routes: The routes; one without an `Operation` is left out.
        requires_keys: Whether routes that are not open require an API key.
    """
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if route.operation is not None:
            operation = _described(route, route.operation, requires_keys)
            paths.setdefault(route.path_format, {})[route.method.lower()] = operation
    document: dict[str, Any] = {
        "openapi": OPENAPI_VERSION,
        "info": {"title": "siglip-serve", "version": __version__, "description": DESCRIPTION},
        "paths": paths,
    }
    if requires_keys:
        document["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        document["security"] = [{"key": []}]
    return document


def _described(route: ApiRoute, operation: Operation, requires_keys: bool) -> dict[str, Any]:
    """Return the document of one route, with what the middlewares add to it."""
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.operation_id or _operation_id(route),
    }
    if route.endpoint.__doc__:
        described["description"] = inspect.cleandoc(route.endpoint.__doc__)
    parameters = [*_path_parameters(route), *operation.request.get("parameters", ())]
    if parameters:
        described["parameters"] = parameters
    if "requestBody" in operation.request:
        described["requestBody"] = operation.request["requestBody"]
    described["responses"] = _responses(route, operation, requires_keys)
    if requires_keys and route.is_open:
        described["security"] = []
    return described


def _responses(
    route: ApiRoute, operation: Operation, requires_keys: bool
) -> dict[str, dict[str, Any]]:
    responses = {str(status): dict(about) for status, about in operation.responses.items()}
    success = {"description": "Success.", "content": {"application/json": {"schema": {}}}}
    responses["200"] = success | responses.get("200", {})
    if "requestBody" in operation.request:
        responses.setdefault("408", _BODY_TIMEOUT)
    if requires_keys and not route.is_open:
        responses.setdefault("401", _NO_KEY)
    return dict(sorted(responses.items()))


def _path_parameters(route: ApiRoute) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in route.param_convertors
    ]


def _operation_id(route: ApiRoute) -> str:
    """Return the name that FastAPI would derive, which generated clients already use."""
    path = re.sub(r"\W", "_", f"{route.name}{route.path_format}")
    return f"{path}_{route.method.lower()}"
