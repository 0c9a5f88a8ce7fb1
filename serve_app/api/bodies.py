"""The transports of `POST /v1/tag`: a raw picture, a form with files, or JSON. One parser each, one validation.

Sizes are enforced while the body streams in, so a request that is too large is refused before it is in memory.
"""

import asyncio
import base64
import binascii
import difflib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from serve_app.config import Limits
from serve_app.errors import InvalidRequest, PayloadTooLarge, RequestError
from serve_app.tagging.prompts import DEFAULT_TEMPLATE
from serve_app.tagging.settings import TagOptions
from serve_app.tagging.vocabulary import make_vocabulary

MAX_FORM_FIELDS = 100
LARGE_JSON_BYTES = 256 * 1024
_DATA_URI = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w=.+-]+)*;base64,", re.IGNORECASE)


def _split_commas(value: Any) -> Any:
    """`a,b,c` and `["a,b", "c"]` from a query string or a form; a JSON list of labels is left as it is."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


class TagParameters(BaseModel):
    """What a request may ask for besides its images; what is left out is the service's own setting."""

    model_config = ConfigDict(extra="forbid")

    labels: Annotated[tuple[str, ...], BeforeValidator(_split_commas)] | None = Field(
        None, description="Labels to score instead of the service's own: a list, or one text with commas."
    )
    prompt_templates: tuple[str, ...] | None = Field(None, description="Sentences with {label}; several are averaged.")
    confidence_threshold: float | None = Field(None, ge=0, le=1, description="Least confidence of a tag.")
    max_tags: int | None = Field(None, ge=1, description="Most tags an image.")

    def options(self, limits: Limits) -> TagOptions:
        """Return what was asked for, its labels and templates checked; raises `InvalidRequest`."""
        if self.labels is not None:
            make_vocabulary(self.labels, self.prompt_templates or (DEFAULT_TEMPLATE,), limits.max_labels_per_request)
        elif self.prompt_templates is not None:
            make_vocabulary(("any",), self.prompt_templates, 1)
        return TagOptions(self.labels, self.prompt_templates, self.confidence_threshold, self.max_tags)


class TagBody(TagParameters):
    """The JSON form of a request: `image` or `images`, base64 or data URIs, beside the parameters."""

    image: str | None = Field(None, description="One picture, base64 or a data URI.")
    images: tuple[str, ...] | None = Field(None, description="Several pictures, base64 or data URIs.")


Model = TypeVar("Model", bound=BaseModel)
NO_OPTIONS = TagOptions()


@dataclass(frozen=True, slots=True)
class TagCall:
    """A request, whatever its transport.

    Attributes:
        images: Encoded pictures, or the error of one that could not even be unpacked, in order.
        options: What was asked for besides.
        many: Whether the answer is a list even for one picture.
    """

    images: tuple[bytes | RequestError, ...]
    options: TagOptions
    many: bool


async def read_tag_call(request: Request, limits: Limits) -> TagCall:
    """Read a request to tag images.

    Raises:
        PayloadTooLarge: More bytes or images than `limits` allow.
        InvalidRequest: The body or a parameter cannot be read.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    match content_type:
        case "application/json":
            call = await _read_json(request, limits)
        case "multipart/form-data":
            call = await _read_form(request, limits)
        case _:  # also what curl --data-binary sends unless told otherwise, application/x-www-form-urlencoded
            call = await _read_raw(request, limits)
    if not call.images:
        raise InvalidRequest("The request holds no image. Send one as the body, as a form file, or as image in JSON.")
    if len(call.images) > limits.max_images_per_request:
        raise PayloadTooLarge(f"The request holds {len(call.images)} images; at most {limits.max_images_per_request} are taken.")
    return call


async def _read_raw(request: Request, limits: Limits) -> TagCall:
    data = await _read_body(request, min(limits.max_body_bytes, limits.max_image_bytes))
    options = _query_options(request, limits) if request.url.query else NO_OPTIONS
    return TagCall((data,) if data else (), options, many=False)


async def _read_json(request: Request, limits: Limits) -> TagCall:
    raw = await _read_body(request, limits.max_body_bytes)
    if len(raw) < LARGE_JSON_BYTES:
        return _parse_json(raw, _query(request), limits)
    return await asyncio.to_thread(_parse_json, raw, _query(request), limits)  # 10 ms a megabyte: not on the event loop


def _parse_json(raw: bytes, query: dict[str, Any], limits: Limits) -> TagCall:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("The body is not JSON, although Content-Type says so.") from error
    if not isinstance(content, dict):
        raise InvalidRequest('The body must be a JSON object such as {"image": "<base64>"}.')
    body = _validated(TagBody, content | query)
    if (body.image is None) == (body.images is None):
        raise InvalidRequest("Give either image or images.")
    encoded = body.images if body.images is not None else (body.image or "",)
    if len(encoded) > limits.max_images_per_request:
        raise PayloadTooLarge(f"The request holds {len(encoded)} images; at most {limits.max_images_per_request} are taken.")
    images = tuple(_unpack(text, limits.max_image_bytes) for text in encoded)
    return TagCall(images, body.options(limits), many=body.images is not None)


async def _read_form(request: Request, limits: Limits) -> TagCall:
    bounded = Request(request.scope, _bounded_receive(request.receive, limits.max_body_bytes))
    images: list[bytes | RequestError] = []
    fields = _query(request)
    try:
        async with bounded.form(max_files=limits.max_images_per_request, max_fields=MAX_FORM_FIELDS) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    images.append(_within(await value.read(limits.max_image_bytes + 1), limits.max_image_bytes))
                else:
                    _add(fields, name, value)
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise PayloadTooLarge(f"The form holds more than {limits.max_images_per_request} files.") from error
        raise InvalidRequest("The multipart form cannot be read. Check its boundary and its fields.") from error
    parameters = _validated(TagParameters, fields)
    return TagCall(tuple(images), parameters.options(limits), many=len(images) > 1)


def _query_options(request: Request, limits: Limits) -> TagOptions:
    return _validated(TagParameters, _query(request)).options(limits)


def _query(request: Request) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        _add(fields, name, value)
    return fields


def _add(fields: dict[str, Any], name: str, value: str) -> None:
    """Add a text field; labels and templates may be repeated, and a single `labels` may hold commas."""
    if name == "labels":
        fields[name] = [*fields.get(name, ()), *_split_commas(value)]
    elif name == "prompt_templates":
        fields[name] = [*fields.get(name, ()), value]
    else:
        fields[name] = value


def _validated(model: type[Model], content: dict[str, Any]) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise InvalidRequest(" ".join(_sentence(problem, model) for problem in error.errors()[:5])) from error


def _sentence(problem: Any, model: type[BaseModel]) -> str:
    name = str(problem["loc"][0]) if problem["loc"] else "The request"
    if problem["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(name, model.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(model.model_fields)}."
        return f"{name[:60]!r} is not a parameter; {hint}"
    return f"{name}: {problem['msg']}."


async def _read_body(request: Request, max_bytes: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    async for chunk in _stream(request):
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _stream(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            if chunk:
                yield chunk
    except ClientDisconnect as error:
        raise InvalidRequest("The connection was closed before the whole body arrived.") from error


def _bounded_receive(receive: Receive, max_bytes: int) -> Receive:
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise _too_large(max_bytes)
        return message

    return bounded


def _unpack(text: str, max_bytes: int) -> bytes | RequestError:
    """Return the bytes of base64 or of a data URI, or why there are none."""
    prefix = _DATA_URI.match(text[:256])
    payload = text[prefix.end() :] if prefix else text
    if len(payload) > (max_bytes + 2) // 3 * 4 + 4:
        return _too_large(max_bytes)
    try:
        return _within(base64.b64decode("".join(payload.split()), validate=True), max_bytes)
    except (binascii.Error, ValueError):
        return InvalidRequest("An image is neither base64 nor a base64 data URI.")


def _within(data: bytes, max_bytes: int) -> bytes | RequestError:
    if len(data) > max_bytes:
        return _too_large(max_bytes)
    return data if data else InvalidRequest("An image is empty.")


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"That is more than {max_bytes:,} bytes, the most that is taken. Send a smaller picture.")
