"""OpenAI's embeddings API, for texts and images: `POST /v1/embeddings`.

Its clients, infinity's and vLLM's send different forms of it.

Source: https://platform.openai.com/docs/api-reference/embeddings; infinity's `modality`; vLLM's
`messages`; NV-CLIP's lists of texts and data URIs; Jina's objects.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, StrictInt
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve_app.api.answers import check_size, encode_embedding
from serve_app.api.dialects.inputs import Item, Modality, read_items
from serve_app.api.json_bodies import read_json_object
from serve_app.api.json_responses import json_response
from serve_app.api.json_values import MAX_ITEMS, JsonBounds
from serve_app.api.openapi import EXAMPLE_IMAGE, body_schema
from serve_app.api.parameters import validated
from serve_app.api.routes import ApiRoute, Routes
from serve_app.api.sources import ImageSources
from serve_app.config.limits import Limits
from serve_app.config.service import ServiceConfig
from serve_app.errors import InvalidRequest, TaggerError
from serve_app.pipeline.tagger import Tagger
from serve_app.siglip.inputs import FloatArray

Value = TypeVar("Value")


class EmbeddingsBody(BaseModel):
    """The fields of a request that are read; others, such as `user`, are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    input: Any = None
    messages: list[dict[str, Any]] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = None
    modality: Modality | None = None


def openai_routes(tagger: Tagger, config: ServiceConfig, sources: ImageSources) -> list[ApiRoute]:
    """Return the routes `POST /v1/embeddings` and `GET /v1/models`."""
    routes = Routes(error_shape)
    model = config.siglip.model_shown

    @routes.post(
        "/v1/embeddings",
        summary="Embed texts and images (OpenAI)",
        request=_REQUEST,
        responses=_RESPONSES,
    )
    async def embeddings(request: Request) -> Response:
        """Embed every input of a request, or none."""
        content = await read_json_object(request, config.limits, _bounds(config.limits))
        body = validated(EmbeddingsBody, content)
        items = read_items(body.input, body.messages, body.modality, config.limits)
        rows = await _embed(tagger, items, sources)
        width = len(rows[0])
        if body.dimensions not in (None, 0, width):
            raise InvalidRequest(
                f"dimensions is {body.dimensions}; this model's embeddings have {width} and cannot "
                "be shortened: SigLIP is not trained so that the beginning of an embedding means "
                "anything by itself. Leave dimensions out."
            )
        num_values = 0 if body.encoding_format == "base64" else len(rows) * width
        check_size(num_values, config.limits.max_response_bytes)
        data = (
            {
                "object": "embedding",
                "index": i,
                "embedding": encode_embedding(row, body.encoding_format),
            }
            for i, row in enumerate(rows)
        )
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        response = {"object": "list", "data": data, "model": model, "usage": usage}
        # base64 of an embedding takes as long to write as some 50 numbers
        num_values = max(num_values, len(rows) * 50)
        return await json_response(response, num_values, config.limits.max_response_bytes)

    @routes.get("/v1/models", summary="The model that is served (OpenAI)")
    async def models(_: Request) -> Response:
        entry = {"id": model, "object": "model", "created": 0, "owned_by": "siglip-serve"}
        return JSONResponse({"object": "list", "data": [entry]})

    return routes.collected


def error_shape(error: TaggerError, status: int) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it."""
    kind = "server_error"
    if status == 429:
        kind = "rate_limit_error"
    elif status < 500:
        kind = "invalid_request_error"
    return {"error": {"message": error.message, "type": kind, "param": None, "code": error.code}}


async def _embed(tagger: Tagger, items: list[Item], sources: ImageSources) -> list[FloatArray]:
    """Return each item's embedding; the first that has none fails the request, as OpenAI's does."""
    texts = {i: item.text for i, item in enumerate(items) if item.text is not None}
    encoded = {i: item.image for i, item in enumerate(items) if item.image is not None}
    images = dict(zip(encoded, await sources.images(list(encoded.values())), strict=True))
    for i in images:
        _value(i, images)  # an image that cannot be read fails the request before any is encoded

    rows: dict[int, FloatArray | TaggerError] = {}
    if texts:
        rows.update(zip(texts, await tagger.embed_texts(list(texts.values())), strict=True))
    if images:
        rows.update(zip(images, await tagger.embed_images(list(images.values())), strict=True))
    return [_value(i, rows) for i in range(len(items))]


def _value(index: int, rows: Mapping[int, Value | TaggerError]) -> Value:
    """Return the value of an input; raises its error, which names the input."""
    row = rows[index]
    if isinstance(row, TaggerError):
        raise type(row)(f"input[{index}]: {row.message}")
    return row


def _bounds(limits: Limits) -> JsonBounds:
    max_inputs = limits.max_labels_per_request
    return JsonBounds(max_items=max(MAX_ITEMS, max_inputs), counted={"input": max_inputs})


_REQUEST: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": body_schema(EmbeddingsBody),
                "example": {
                    "model": "siglip",
                    "input": ["a red circle", f"data:image/png;base64,{EXAMPLE_IMAGE}"],
                    "encoding_format": "float",
                },
            }
        },
    }
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "One embedding for each input, in order, of unit norm."},
    400: {"description": "The request cannot be read; the error has OpenAI's shape."},
    **{
        status: {"description": "As for /v1/tag, in OpenAI's shape."}
        for status in (413, 415, 422, 429, 500, 503, 504)
    },
}
