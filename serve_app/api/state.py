"""What the service says of itself: health, model, configuration, vocabularies."""

from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve_app.api import openapi
from serve_app.api.json_responses import ChunkedJson, json_response, write_json
from serve_app.api.routes import ApiRoute, Routes
from serve_app.api.threads import off_loop
from serve_app.pipeline.tagger import Tagger


def state_routes(tagger: Tagger) -> list[ApiRoute]:
    """Return the routes that report the service's state and change nothing."""
    routes = Routes()
    _add_health(routes, tagger)
    _add_model(routes, tagger)
    _add_vocabularies(routes, tagger)
    return routes.collected


def _add_health(routes: Routes, tagger: Tagger) -> None:
    @routes.get("/healthz", is_open=True, summary="Is the process alive?")
    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "alive"})

    @routes.get(
        "/readyz",
        is_open=True,
        summary="Are the models loaded and checked?",
        responses=openapi.NOT_READY,
    )
    async def readyz(_: Request) -> Response:
        await tagger.describe()
        return JSONResponse({"status": "ready"})


def _add_model(routes: Routes, tagger: Tagger) -> None:
    @routes.get("/v1/model", responses=openapi.NOT_READY, summary="What is served")
    async def model(_: Request) -> Response:
        return JSONResponse(asdict(await tagger.describe()))

    @routes.get(
        "/v1/config",
        responses=openapi.NOT_READY,
        summary="The configuration as it runs, resolved by the plan",
    )
    async def configuration(_: Request) -> Response:
        content = await tagger.configuration()
        # vocabularies of thousands of tags may be in it
        return ChunkedJson(await off_loop(write_json, content))


def _add_vocabularies(routes: Routes, tagger: Tagger) -> None:
    @routes.get(
        "/v1/vocabularies",
        responses=openapi.NOT_READY,
        summary="What vocabularies there are, the default one first",
    )
    async def vocabularies(_: Request) -> Response:
        return JSONResponse(
            {"vocabularies": [asdict(card) for card in await tagger.vocabularies()]}
        )

    @routes.get(
        "/v1/vocabularies/{name}",
        responses=openapi.NOT_READY | openapi.UNKNOWN_VOCABULARY,
        summary="One vocabulary with its tags",
    )
    async def vocabulary(request: Request) -> Response:
        detail = await tagger.vocabulary(request.path_params["name"])
        tags = (tag.model_dump(mode="json", exclude_defaults=True) for tag in detail.tags)
        content = asdict(detail.card) | {"tags": tags}
        return await json_response(content, len(detail.tags), max_bytes=None)
