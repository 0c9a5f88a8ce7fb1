"""OpenAI's embeddings, for texts and images: what its clients, infinity's and vLLM's send to `POST /v1/embeddings`.

Source: https://platform.openai.com/docs/api-reference/embeddings; infinity's `modality`; vLLM's `messages`; NV-CLIP's lists of
texts and data URIs; Jina's objects.
"""

from dataclasses import dataclass
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, StrictInt
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve_app.api.answers import check_size, encode_embedding
from serve_app.api.dialects.shapes import with_errors
from serve_app.api.json_bodies import read_json_object
from serve_app.api.json_responses import json_response
from serve_app.api.json_values import MAX_ITEMS, JsonBounds
from serve_app.api.long_texts import LongText
from serve_app.api.openapi import EXAMPLE_IMAGE
from serve_app.api.parameters import validated
from serve_app.api.sources import ImageSources, ImageText
from serve_app.config import Limits, ServiceConfig
from serve_app.errors import InvalidRequest, PayloadTooLarge, RequestError, TaggerError
from serve_app.siglip.inputs import FloatArray
from serve_app.tagger import Tagger
from serve_app.tagging.prompts import check_text

PATHS = ("/v1/embeddings", "/v1/models")
MAX_TEXT_CHARACTERS = 8_192
"""Of one text; the tower reads its beginning, as much as the checkpoint's context length holds."""
_DATA = "data:image/"


class EmbeddingsBody(BaseModel):
    """What is read of a request; other fields that clients send, such as `user`, are left alone."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    input: Any = None
    messages: list[dict[str, Any]] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = None
    modality: Literal["text", "image"] = "text"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to embed: a text, or the base64, data URI or URL of an image."""

    text: str | None = None
    image: ImageText | None = None


def add_openai(app: FastAPI, tagger: Tagger, config: ServiceConfig, sources: ImageSources) -> None:
    """Add `POST /v1/embeddings` and `GET /v1/models`."""
    model = config.siglip.model_shown

    @app.post("/v1/embeddings", openapi_extra=_REQUEST, responses=_RESPONSES, summary="Embed texts and images (OpenAI)")
    @with_errors(error_shape)
    async def embeddings(request: Request) -> Response:
        """Embed every input of a request, or none."""
        content = await read_json_object(request, config.limits, _bounds(config.limits))
        body = validated(EmbeddingsBody, content)
        rows = await _embed(tagger, read_items(body, config.limits), sources)
        width = len(rows[0])
        if body.dimensions not in (None, 0, width):
            raise InvalidRequest(
                f"dimensions is {body.dimensions}; this model's embeddings have {width} and cannot be shortened: SigLIP was not trained "
                "so that their beginning means anything alone. Leave it out."
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

    @app.get("/v1/models", summary="The model that is served (OpenAI)")
    async def models() -> JSONResponse:
        entry = {"id": model, "object": "model", "created": 0, "owned_by": "siglip-serve"}
        return JSONResponse({"object": "list", "data": [entry]})


def error_shape(error: TaggerError, status: int) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it."""
    kind = "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": error.message, "type": kind, "param": None, "code": error.code}}


def read_items(body: EmbeddingsBody, limits: Limits) -> list[Item]:
    """Return what is to be embedded, in order.

    Raises:
        InvalidRequest: It is neither text nor a picture.
        PayloadTooLarge: It is too much.
    """
    if (body.input is None) == (body.messages is None):
        raise InvalidRequest("Give either input or messages.")
    given = [_of_messages(body.messages)] if body.messages is not None else body.input if isinstance(body.input, list) else [body.input]
    if not given:
        raise InvalidRequest("input is empty; give at least one text or image.")
    if len(given) > limits.max_labels_per_request:
        raise PayloadTooLarge(f"The request holds {len(given):,} inputs; at most {limits.max_labels_per_request:,} are taken.")
    return [_item(value, body.modality) for value in given]


async def _embed(tagger: Tagger, items: list[Item], sources: ImageSources) -> list[FloatArray]:
    """Return each item's embedding; the first that has none fails the request, as OpenAI's does."""
    texts = [item.text for item in items if item.text is not None]
    places = [at for at, item in enumerate(items) if item.image is not None]
    images: list[bytes] = []
    for at, image in zip(places, await sources.images([items[at].image or "" for at in places]), strict=True):
        if isinstance(image, RequestError):
            raise type(image)(f"input[{at}]: {image.message}")
        images.append(image)
    of_texts = iter(await tagger.embed_texts(texts) if texts else ())
    of_images = iter(await tagger.embed_images(images) if images else ())
    rows: list[FloatArray] = []
    for at, item in enumerate(items):
        row = next(of_texts) if item.text is not None else next(of_images)
        if isinstance(row, TaggerError):
            raise type(row)(f"input[{at}]: {row.message}")
        rows.append(row)
    return rows


def _bounds(limits: Limits) -> JsonBounds:
    max_inputs = limits.max_labels_per_request
    return JsonBounds(max_items=max(MAX_ITEMS, max_inputs), counted={"input": max_inputs})


def _item(value: Any, modality: str) -> Item:
    if isinstance(value, dict) and len(value) == 1 and "text" in value:
        value, modality = value["text"], "only text"
    elif isinstance(value, dict) and len(value) == 1 and "image" in value:
        value, modality = value["image"], "image"
    if not isinstance(value, str | LongText):
        raise InvalidRequest("Each input must be a text, a data URI of an image, or an object with text or image; tokens are not taken.")
    head = value.head().decode("latin-1") if isinstance(value, LongText) else value
    is_data_uri = head[: len(_DATA)].lower() == _DATA
    if modality == "image" or (modality == "text" and is_data_uri):
        return Item(image=value)
    if isinstance(value, LongText):
        raise InvalidRequest(f"A text has more than {MAX_TEXT_CHARACTERS:,} characters; at most {MAX_TEXT_CHARACTERS:,} are taken.")
    return Item(text=_text(value))


def _text(value: str) -> str:
    check_text(value)
    if not value.strip():
        raise InvalidRequest("A text is empty.")
    if len(value) > MAX_TEXT_CHARACTERS:
        raise InvalidRequest(f"A text has {len(value):,} characters; at most {MAX_TEXT_CHARACTERS:,} are taken.")
    return value


def _of_messages(messages: list[dict[str, Any]] | None) -> Any:
    """Return the one text or image of vLLM's form."""
    parts: list[Any] = []
    for message in messages or ():
        content = message.get("content")
        parts += [{"type": "text", "text": content}] if isinstance(content, str) else content if isinstance(content, list) else []
    if len(parts) != 1 or not isinstance(parts[0], dict):
        raise InvalidRequest("messages must hold exactly one text or one image_url: the model embeds either, never both together.")
    part = parts[0]
    match part.get("type"):
        case "text":
            return {"text": part.get("text")}
        case "image_url" if isinstance(part.get("image_url"), dict):
            return {"image": part["image_url"].get("url")}
        case _:
            raise InvalidRequest('The part of a message must be {"type": "text", …} or {"type": "image_url", "image_url": {"url": …}}.')


_REQUEST: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": EmbeddingsBody.model_json_schema(),
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
    **{status: {"description": "As for /v1/tag, in OpenAI's shape."} for status in (413, 415, 422, 429, 500, 503, 504)},
}
