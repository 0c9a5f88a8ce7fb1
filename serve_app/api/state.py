"""What the service says of itself: health, model, configuration, vocabularies."""

from dataclasses import asdict

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

from serve_app.api import openapi
from serve_app.api.json_responses import ChunkedJson, json_response, write_json
from serve_app.api.threads import off_loop
from serve_app.pipeline.tagger import Tagger


def add_state(app: FastAPI, tagger: Tagger) -> None:
    """Add the routes that tell and change nothing."""

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

    @app.get(
        "/v1/config",
        responses=openapi.NOT_READY,
        summary="The configuration as it runs, resolved by the plan",
    )
    async def configuration() -> Response:
        content = await tagger.configuration()
        # vocabularies of thousands of tags may be in it
        return ChunkedJson(await off_loop(write_json, content))

    @app.get(
        "/v1/vocabularies",
        responses=openapi.NOT_READY,
        summary="What vocabularies there are, the default one first",
    )
    async def vocabularies() -> JSONResponse:
        return JSONResponse(
            {"vocabularies": [asdict(card) for card in await tagger.vocabularies()]}
        )

    @app.get(
        "/v1/vocabularies/{name}",
        responses=openapi.NOT_READY | openapi.UNKNOWN_VOCABULARY,
        summary="One vocabulary with its tags",
    )
    async def vocabulary(name: str) -> Response:
        detail = await tagger.vocabulary(name)
        tags = (tag.model_dump(mode="json", exclude_defaults=True) for tag in detail.tags)
        content = asdict(detail.card) | {"tags": tags}
        return await json_response(content, len(detail.tags), max_bytes=None)
