"""Open Inference Protocol: health and model metadata, for KServe's probes and whoever asks a server
what it serves.

Source: https://github.com/kserve/open-inference-protocol (REST). Inference itself goes by `POST
/v1/tag`.
"""

from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve_app import __version__
from serve_app.api.dialects.shapes import with_errors
from serve_app.config.service import ServiceConfig
from serve_app.errors import TaggerError
from serve_app.pipeline.tagger import Tagger


def add_open_inference(app: FastAPI, tagger: Tagger, config: ServiceConfig) -> None:
    """Add `/v2` and what is below it."""
    model = config.siglip.model_shown

    @app.get("/v2", summary="Server metadata (Open Inference Protocol)")
    async def server() -> JSONResponse:
        return JSONResponse({"name": "siglip-serve", "version": __version__, "extensions": []})

    @app.get("/v2/health/live", summary="Is the process alive? (Open Inference Protocol)")
    async def live() -> JSONResponse:
        return JSONResponse({"live": True})

    @with_errors(error_shape)
    async def ready(request: Request) -> Response:
        await tagger.describe()
        return JSONResponse({"ready": True})

    @with_errors(error_shape)
    async def metadata(request: Request) -> Response:
        """Say what the served model takes and gives, or that it is ready."""
        name: str = request.path_params["model"]
        if name.removesuffix("/ready") != model:
            return JSONResponse(
                {"error": f"There is no model {name[:100]!r}; this server has {model}."}, 404
            )
        card = await tagger.describe()
        if name.endswith("/ready"):
            return JSONResponse({"name": model, "ready": True})
        return JSONResponse(
            {
                "name": model,
                "versions": [card.revision or "main"],
                "platform": "siglip_pytorch",
                "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}],
                "outputs": [{"name": "tags", "datatype": "BYTES", "shape": [-1]}],
            }
        )

    app.add_api_route(
        "/v2/health/ready",
        ready,
        summary="Are the models loaded? (Open Inference Protocol)",
        responses=_NOT_READY,
    )
    # the name of a model on the hub holds a slash
    app.add_api_route(
        "/v2/models/{model:path}", metadata, summary="Model metadata, and /ready (Open Inference Protocol)", openapi_extra=_PATH,
        responses=_NOT_READY | {404: {"description": "Another model's name."}},
    )  # fmt: skip


def error_shape(error: TaggerError, status: int) -> dict[str, Any]:
    """Return an error as the protocol writes it."""
    return {"error": error.message}


_NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"description": "The models are not ready yet."}
}
_PATH: dict[str, Any] = {
    "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
}
