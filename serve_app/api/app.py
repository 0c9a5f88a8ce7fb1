"""The HTTP face over a `Tagger`: routes, errors, documentation. No Ray; composition is all here.

Not here: reading requests (`bodies.py`), writing answers (`answers.py`), the OpenAPI text (`openapi.py`).
"""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path

import swagger_ui_bundle
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app import __version__
from serve_app.api import openapi
from serve_app.api.answers import error_body, error_response, score_response, tag_response
from serve_app.api.bodies import TagCall, read_tag_call
from serve_app.api.dialects.hugging_face import add_hugging_face
from serve_app.api.dialects.open_inference import add_open_inference
from serve_app.api.dialects.openai import add_openai
from serve_app.api.embeddings import read_score_call
from serve_app.config import ServiceConfig
from serve_app.errors import RequestError, TaggerError
from serve_app.tagger import TagAnswer, Tagger

logger = logging.getLogger(__name__)

DOCS_ASSETS = "/docs/assets"
Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(tagger: Tagger, config: ServiceConfig) -> ASGIApp:
    """Return the ASGI application that serves a tagger.

    `POST /v1/tag` is answered before FastAPI is reached: its middleware and routing take more time than all that is
    done for a request here besides decoding. FastAPI documents that route and has all the others.
    """
    app = FastAPI(title="siglip-serve", version=__version__, docs_url=None, redoc_url=None, description=openapi.DESCRIPTION)
    app.openapi_version = "3.0.3"  # the bundled Swagger UI reads no 3.1
    tag = _tag_endpoint(tagger, config)
    tag_route = app.post("/v1/tag", openapi_extra=openapi.TAG_REQUEST, responses=openapi.TAG_RESPONSES, summary="Tag one image or many")
    tag_route(tag)
    _add_score(app, tagger, config)
    _add_vocabularies(app, tagger)
    _add_state(app, tagger)
    add_openai(app, tagger, config)
    add_hugging_face(app, tagger, config)
    add_open_inference(app, tagger, config)
    _add_docs(app)
    app.add_exception_handler(TaggerError, _on_tagger_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_unexpected)
    return _TagFirst(tag, app)


class _TagFirst:
    """Pure ASGI: tagging by the shortest way, everything else by FastAPI."""

    def __init__(self, tag: Endpoint, others: ASGIApp) -> None:
        self._tag, self._others = tag, others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/v1/tag" or scope["method"] != "POST":
            await self._others(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await self._tag(request)
        except TaggerError as error:
            response = error_response(error)
        except Exception as error:
            response = await _on_unexpected(request, error)
        await response(scope, receive, send)


def _tag_endpoint(tagger: Tagger, config: ServiceConfig) -> Endpoint:
    model, limits = config.siglip.model_shown, config.limits

    async def tag(request: Request) -> Response:
        started_s = time.perf_counter()
        call = await read_tag_call(request, limits)
        return tag_response(call, await _tag_readable(tagger, call), model, started_s)

    return tag


async def _tag_readable(tagger: Tagger, call: TagCall) -> TagAnswer:
    """Tag the images that could be unpacked and put the others' errors back in their places."""
    readable = [image for image in call.images if not isinstance(image, RequestError)]
    with_embeddings = call.parameters.returned == "embedding"
    if len(readable) == len(call.images):
        return await tagger.tag(readable, call.options, with_embeddings)
    answer = await tagger.tag(readable, call.options, with_embeddings) if readable else TagAnswer(())
    at = iter(range(len(readable)))
    places = [None if isinstance(image, RequestError) else next(at) for image in call.images]
    tagged = iter(answer.outcomes)
    outcomes = [image if isinstance(image, RequestError) else next(tagged) for image in call.images]
    embeds = answer.image_embeds
    return TagAnswer(
        tuple(outcomes),
        answer.scored,
        None if embeds is None else tuple(None if at is None else embeds[at] for at in places),
        tuple(0 if at is None else answer.views[at] for at in places),
    )


def _add_score(app: FastAPI, tagger: Tagger, config: ServiceConfig) -> None:
    @app.post("/v1/score", openapi_extra=openapi.SCORE_REQUEST, responses=openapi.SCORE_RESPONSES, summary="Tag stored image embeddings")
    async def score(request: Request) -> Response:
        started_s = time.perf_counter()
        call = await read_score_call(request, config.limits)
        return score_response(await tagger.score(call.image_embeds, call.options), config.siglip.model_shown, started_s)


def _add_vocabularies(app: FastAPI, tagger: Tagger) -> None:
    @app.get("/v1/vocabularies", responses=openapi.NOT_READY, summary="What vocabularies there are, the default one first")
    async def vocabularies() -> JSONResponse:
        return JSONResponse({"vocabularies": [asdict(card) for card in await tagger.vocabularies()]})

    @app.get("/v1/vocabularies/{name}", responses=openapi.NOT_READY | openapi.UNKNOWN_VOCABULARY, summary="One vocabulary with its tags")
    async def vocabulary(name: str) -> JSONResponse:
        detail = await tagger.vocabulary(name)
        return JSONResponse(asdict(detail.card) | {"tags": [tag.model_dump(mode="json", exclude_defaults=True) for tag in detail.tags]})


def _add_state(app: FastAPI, tagger: Tagger) -> None:
    @app.get("/healthz", summary="Is the process alive?")
    async def healthz() -> JSONResponse:
        return JSONResponse({"status": "alive"})

    @app.get("/readyz", responses=openapi.NOT_READY, summary="Are the models loaded and checked?")
    async def readyz() -> JSONResponse:
        await tagger.describe()
        return JSONResponse({"status": "ready"})

    @app.get("/v1/model", responses=openapi.NOT_READY, summary="What is served")
    async def model() -> JSONResponse:
        return JSONResponse(asdict(await tagger.describe()))


def _add_docs(app: FastAPI) -> None:
    assets: Path = swagger_ui_bundle.swagger_ui_path
    app.mount(DOCS_ASSETS, StaticFiles(directory=assets), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="siglip-serve",
            swagger_js_url=f"{DOCS_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{DOCS_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{DOCS_ASSETS}/favicon-32x32.png",
        )


async def _on_tagger_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, TaggerError)
    return error_response(error)


async def _on_http_exception(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {
        404: ("not_found", "There is nothing at this path; see /docs."),
        405: ("method_not_allowed", "This path takes another method; see /docs."),
    }
    code, message = codes.get(error.status_code, ("bad_request", "The request cannot be read."))
    return JSONResponse(error_body(code, message), error.status_code, error.headers)


async def _on_unexpected(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse(error_body("internal", "The service failed on this request. Its log says why."), 500)
