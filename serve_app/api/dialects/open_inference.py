"""Open Inference Protocol: health and model metadata, for KServe's probes.

Source: https://github.com/kserve/open-inference-protocol (REST). Images are tagged by `/v1/tag`.
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve_app import __version__
from serve_app.api.routes import ApiRoute, Responses, Routes
from serve_app.config.service import ServiceConfig
from serve_app.errors import TaggerError
from serve_app.pipeline.tagger import ModelCard, Tagger


def open_inference_routes(tagger: Tagger, config: ServiceConfig) -> list[ApiRoute]:
    """Return the routes `/v2` and below."""
    routes = Routes(error_shape)
    model = config.siglip.model_shown

    @routes.get("/v2", summary="Server metadata (Open Inference Protocol)")
    async def server(_: Request) -> Response:
        return JSONResponse({"name": "siglip-serve", "version": __version__, "extensions": []})

    @routes.get(
        "/v2/health/live",
        is_open=True,
        summary="Is the process alive? (Open Inference Protocol)",
    )
    async def live(_: Request) -> Response:
        return JSONResponse({"live": True})

    @routes.get(
        "/v2/health/ready",
        is_open=True,
        summary="Are the models loaded? (Open Inference Protocol)",
        responses=_NOT_READY,
    )
    async def ready(_: Request) -> Response:
        await tagger.describe()
        return JSONResponse({"ready": True})

    # the name of a model on the Hub contains a slash
    @routes.get(
        "/v2/models/{model:path}",
        summary="Model metadata, and /ready (Open Inference Protocol)",
        responses={**_NOT_READY, 404: {"description": "Another model's name."}},
    )
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
        return JSONResponse(_metadata_of(model, card))

    return routes.collected


def _metadata_of(model: str, card: ModelCard) -> dict[str, Any]:
    return {
        "name": model,
        "versions": [card.revision or "main"],
        "platform": "siglip_pytorch",
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}],
        "outputs": [{"name": "tags", "datatype": "BYTES", "shape": [-1]}],
    }


def error_shape(error: TaggerError, status: int) -> dict[str, Any]:
    """Return an error as the protocol writes it."""
    return {"error": error.message}


_NOT_READY: Responses = {503: {"description": "The models are not ready yet."}}
