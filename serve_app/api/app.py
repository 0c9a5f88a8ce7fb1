"""The HTTP face over a `Tagger`: composition is all here. No Ray.

Not here: reading requests (`bodies.py`, `sources.py`), answering them (`tagging.py`, `state.py`,
`dialects/`), what every request passes (`edge.py`), the OpenAPI text (`openapi.py`).
"""

import logging
from collections.abc import Sequence

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app import __version__
from serve_app.api import openapi
from serve_app.api.admission import Admission
from serve_app.api.answers import ErrorShape, error_body, error_response, own_shape
from serve_app.api.dialects import hugging_face, open_inference, openai
from serve_app.api.docs import add_docs
from serve_app.api.edge import Edge, Observer
from serve_app.api.keys import ApiKeys
from serve_app.api.methods import HeadAsGet, allowed_methods, options_response
from serve_app.api.page import add_page
from serve_app.api.passages import ClientTimes
from serve_app.api.prefix import WithoutPrefix
from serve_app.api.request_log import request_log
from serve_app.api.sources import image_sources
from serve_app.api.state import add_state
from serve_app.api.tagging import Endpoint, score_endpoint, tag_endpoint
from serve_app.config.access import Access
from serve_app.config.service import ServiceConfig
from serve_app.errors import RequestError, TaggerError
from serve_app.pipeline.tagger import Tagger
from serve_app.telemetry.record import note_code

logger = logging.getLogger(__name__)

TAG = "/v1/tag"
EXPOSED_HEADERS = ("x-request-id", "server-timing", "retry-after")
"""That pages of other origins may read, where they may ask at all."""


def create_app(
    tagger: Tagger,
    config: ServiceConfig,
    observers: Sequence[Observer] = (),
    *,
    admission: Admission | None = None,
    behind_serve: bool = False,
) -> ASGIApp:
    """Return the ASGI application that serves a tagger.

    `POST /v1/tag` is answered before FastAPI is reached: its middleware and routing take more time
    than all that is done for a request here besides decoding. FastAPI documents that route and has
    all the others.

    Args:
        tagger: Does the work.
        config: The service's.
        observers: Told of every request, besides its log.
        admission: Budgets of this process; new ones by default.
        behind_serve: Whether Ray Serve sets the request id on answers.

    Raises:
        ConfigError: The API keys cannot be read.
    """
    access = config.access
    sources = image_sources(config)
    app = FastAPI(
        title="siglip-serve", version=__version__, docs_url=None, redoc_url=None, description=openapi.DESCRIPTION,
        openapi_url="/openapi.json" if access.docs else None,
    )  # fmt: skip
    app.openapi_version = "3.0.3"  # the bundled Swagger UI reads no 3.1
    tag = tag_endpoint(tagger, config, sources)
    app.post(
        TAG,
        openapi_extra=openapi.TAG_REQUEST,
        responses=openapi.TAG_RESPONSES,
        summary="Tag one image or many",
    )(tag)
    score = score_endpoint(tagger, config)
    app.post(
        "/v1/score",
        openapi_extra=openapi.SCORE_REQUEST,
        responses=openapi.SCORE_RESPONSES,
        summary="Tag stored image embeddings",
    )(score)
    add_state(app, tagger)
    openai.add_openai(app, tagger, config, sources)
    hugging_face.add_hugging_face(app, tagger, sources)
    open_inference.add_open_inference(app, tagger, config)
    if access.page:
        add_page(app)
    if access.docs:
        add_docs(app)
        openapi.describe_edge(app, access.api_keys is not None)
    app.add_exception_handler(TaggerError, _on_tagger_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_unexpected)
    log = config.telemetry.request_log
    limits = config.limits
    edge = Edge(
        HeadAsGet(_TagFirst(tag, app)),
        ClientTimes(limits.body_timeout_s, limits.write_timeout_s),
        admission or Admission(limits),
        None if access.api_keys is None else ApiKeys(access.api_keys),
        shape_of,
        (*observers, *(() if log == "off" else (request_log(log),))),
        returns_request_id=not behind_serve,
    )
    return WithoutPrefix(_with_cors(edge, access))


def shape_of(path: str) -> ErrorShape:
    """Return the shape of a path's errors: that of the clients who know it."""
    if path in openai.PATHS:
        return openai.error_shape
    if path in hugging_face.PATHS:
        return hugging_face.error_shape
    return open_inference.error_shape if path == "/v2" or path.startswith("/v2/") else own_shape


class _TagFirst:
    """Pure ASGI: tagging by the shortest way, everything else by FastAPI."""

    def __init__(self, tag: Endpoint, others: FastAPI) -> None:
        self._tag = tag
        self._others = others
        self._route = next(route for route in others.routes if getattr(route, "path", None) == TAG)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != TAG or scope["method"] != "POST":
            await self._others(scope, receive, send)
            return
        scope["route"] = self._route  # as FastAPI would note it
        request = Request(scope, receive)
        try:
            response = await self._tag(request)
        except TaggerError as error:
            response = error_response(error)
        except Exception as error:
            response = await _on_unexpected(request, error)
        await response(scope, receive, send)


def _with_cors(app: ASGIApp, access: Access) -> ASGIApp:
    """Let pages of other origins ask, if any may; their browsers ask for leave without a key, so
    before the edge.
    """
    if not access.cors_origins:
        return app
    return CORSMiddleware(
        app,
        access.cors_origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=EXPOSED_HEADERS,
        max_age=600,
    )


async def _on_tagger_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, TaggerError)
    return error_response(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = error.headers
    if error.status_code == 405:
        methods = allowed_methods(request)
        if request.method == "OPTIONS":
            return options_response(methods)
        headers = {"Allow": ", ".join(methods)}
        known = RequestError(
            f"This path does not support {request.method[:20]}. Use {' or '.join(methods)}."
        )
        known.code = "method_not_allowed"
    elif error.status_code == 404:
        known = RequestError("There is nothing at this path; see the documentation.")
        known.code = "not_found"
    else:
        known = RequestError("The request cannot be read.")
    note_code(known.code)
    return JSONResponse(
        shape_of(request.url.path)(known, error.status_code), error.status_code, headers
    )


async def _on_unexpected(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    note_code("internal")
    return JSONResponse(
        error_body("internal", "The service failed on this request. Its log says why."), 500
    )
