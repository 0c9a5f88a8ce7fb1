"""Composition of the HTTP face over a `Tagger`: all routes, and all middlewares in order. No Ray.

Not here: reading requests (`bodies.py`, `sources.py`), answering them (`tagging.py`, `state.py`,
`dialects/`), what a middleware does (a module each), the OpenAPI document (`document.py`).
"""

from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from serve_app.api import openapi
from serve_app.api.admission import Admission, AdmitRequests
from serve_app.api.application import Application
from serve_app.api.authentication import RequireKey
from serve_app.api.client_timeouts import ClientTimeouts
from serve_app.api.dialects.hugging_face import hugging_face_routes
from serve_app.api.dialects.open_inference import open_inference_routes
from serve_app.api.dialects.openai import openai_routes
from serve_app.api.docs import docs_routes
from serve_app.api.error_responses import ErrorResponses
from serve_app.api.keys import ApiKeys
from serve_app.api.methods import HeadWithoutBody, OptionsResponses
from serve_app.api.page import page_routes
from serve_app.api.prefix import PrefixRoot
from serve_app.api.recording import RecordRequests
from serve_app.api.request_log import request_log
from serve_app.api.response_headers import ResponseHeaders
from serve_app.api.routes import ApiRoute, Routes, RouteTable
from serve_app.api.sources import ImageSources, image_sources
from serve_app.api.state import state_routes
from serve_app.api.tagging import score_endpoint, tag_endpoint
from serve_app.api.unread_bodies import UnreadBodies
from serve_app.config.access import Access
from serve_app.config.limits import Limits
from serve_app.config.service import ServiceConfig
from serve_app.pipeline.tagger import Tagger
from serve_app.telemetry.record import Observer

EXPOSED_HEADERS = ("x-request-id", "server-timing", "retry-after")
"""Response headers that pages of the allowed other origins may read."""


def create_app(
    tagger: Tagger,
    config: ServiceConfig,
    observers: Sequence[Observer] = (),
    *,
    admission: Admission | None = None,
    behind_serve: bool = False,
) -> ASGIApp:
    """Return the ASGI application that serves a tagger.

    Args:
        tagger: Does the work.
        config: The service's configuration.
        observers: Called with every finished request, in addition to the request log.
        admission: Budgets of this process; new ones by default.
        behind_serve: Whether Ray Serve sets the request id of responses.

    Raises:
        ConfigError: The API keys cannot be read.
    """
    log = config.telemetry.request_log
    logs = () if log == "off" else (request_log(log),)
    routes = RouteTable(all_routes(tagger, config))
    middleware = (
        Middleware(PrefixRoot),
        *_cross_origin(config.access),
        *edge(
            routes,
            config.limits,
            admission=admission or Admission(config.limits),
            keys=_keys(config.access),
            observers=(*observers, *logs),
            returns_request_id=not behind_serve,
        ),
    )
    return Application(routes, middleware)


def all_routes(tagger: Tagger, config: ServiceConfig) -> list[ApiRoute]:
    """Return every route, in the order in which they are matched."""
    access = config.access
    sources = image_sources(config)
    routes = [
        *_tagging_routes(tagger, config, sources),
        *state_routes(tagger),
        *openai_routes(tagger, config, sources),
        *hugging_face_routes(tagger, sources),
        *open_inference_routes(tagger, config),
    ]
    if access.page:
        routes += page_routes()
    if access.docs:
        routes += docs_routes(routes, requires_keys=access.api_keys is not None)
    return routes


def edge(
    routes: RouteTable,
    limits: Limits,
    *,
    admission: Admission,
    keys: ApiKeys | None = None,
    observers: Sequence[Observer] = (),
    returns_request_id: bool = True,
) -> list[Middleware]:
    """Return what every request passes before its route, the outermost middleware first."""
    authentication = [] if keys is None else [Middleware(RequireKey, keys, routes)]
    return [
        Middleware(UnreadBodies),
        Middleware(RecordRequests, observers),
        Middleware(ResponseHeaders, returns_request_id),
        Middleware(ClientTimeouts, limits.body_timeout_s, limits.write_timeout_s),
        Middleware(HeadWithoutBody),
        Middleware(ErrorResponses, routes),
        *authentication,
        Middleware(AdmitRequests, admission, routes),
        Middleware(OptionsResponses, routes),
    ]


def _keys(access: Access) -> ApiKeys | None:
    return None if access.api_keys is None else ApiKeys(access.api_keys)


def _cross_origin(access: Access) -> list[Middleware]:
    """Return the CORS middleware if pages of other origins are allowed.

    Browsers send preflights without a key, so it is outside the edge.
    """
    if not access.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            access.cors_origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            expose_headers=EXPOSED_HEADERS,
            max_age=600,
        )
    ]


def _tagging_routes(tagger: Tagger, config: ServiceConfig, sources: ImageSources) -> list[ApiRoute]:
    routes = Routes()
    routes.post(
        "/v1/tag",
        summary="Tag one image or many",
        request=openapi.TAG_REQUEST,
        responses=openapi.TAG_RESPONSES,
    )(tag_endpoint(tagger, config, sources))
    routes.post(
        "/v1/score",
        summary="Tag stored image embeddings",
        request=openapi.SCORE_REQUEST,
        responses=openapi.SCORE_RESPONSES,
    )(score_endpoint(tagger, config))
    return routes.collected
