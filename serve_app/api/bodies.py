"""The transports of `POST /v1/tag`: a raw picture, a form with files, or JSON. One parser each, one validation.

Sizes are enforced while the body streams in, so a request that is too large is refused before it is in memory.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from serve_app.api.parameters import TagParameters, add_field, query_fields, validated
from serve_app.api.sources import LARGE_TEXT_BYTES, ImageSources, too_large, within
from serve_app.config import Limits
from serve_app.errors import InvalidRequest, PayloadTooLarge, RequestError
from serve_app.tagging.settings import TagOptions

MAX_FORM_FIELDS = 100


class TagBody(TagParameters):
    """The JSON form of a request: `image` or `images`, base64, data URIs or URLs, beside the parameters."""

    image: str | None = Field(None, description="One picture: base64, a data URI, or where the service fetches images a URL.")
    images: tuple[str, ...] | None = Field(None, description="Several pictures, each as for image.")


NO_PARAMETERS, NO_OPTIONS = TagParameters(), TagOptions()


@dataclass(frozen=True, slots=True)
class TagCall:
    """A request, whatever its transport.

    Attributes:
        images: Encoded pictures, or the error of one that could not even be unpacked, in order.
        options: What was asked for besides.
        many: Whether the answer is a list even for one picture.
        parameters: The same before it was checked, with what concerns only the answer's form.
    """

    images: tuple[bytes | RequestError, ...]
    options: TagOptions
    many: bool
    parameters: TagParameters = NO_PARAMETERS


async def read_tag_call(request: Request, sources: ImageSources) -> TagCall:
    """Read a request to tag images.

    Raises:
        PayloadTooLarge: More bytes or images than `limits` allow.
        InvalidRequest: The body or a parameter cannot be read.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    limits = sources.limits
    match content_type:
        case "application/json":
            call = await _read_json(request, sources)
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
    data = await read_body(request, min(limits.max_body_bytes, limits.max_image_bytes))
    images = (data,) if data else ()
    if not request.url.query:
        return TagCall(images, NO_OPTIONS, many=False)
    parameters = validated(TagParameters, query_fields(request))
    return TagCall(images, parameters.options(limits), many=False, parameters=parameters)


async def _read_json(request: Request, sources: ImageSources) -> TagCall:
    limits = sources.limits
    content = await read_json_object(request, limits)
    body = validated(TagBody, content | query_fields(request))
    if (body.image is None) == (body.images is None):
        raise InvalidRequest("Give either image or images.")
    options = body.options(limits)
    images = await sources.images(body.images if body.images is not None else (body.image or "",))
    return TagCall(images, options, many=body.images is not None, parameters=body)


async def read_json_object(request: Request, limits: Limits) -> dict[str, Any]:
    """Read a body that must be a JSON object.

    Raises:
        PayloadTooLarge: More bytes than `limits` allow.
        InvalidRequest: It is something else.
    """
    raw = await read_body(request, limits.max_body_bytes)
    try:
        # 10 ms a megabyte: not on the event loop
        content = json.loads(raw) if len(raw) < LARGE_TEXT_BYTES else await asyncio.to_thread(json.loads, raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("The body is not JSON.") from error
    if not isinstance(content, dict):
        raise InvalidRequest('The body must be a JSON object such as {"image": "<base64>"}.')
    return content


async def _read_form(request: Request, limits: Limits) -> TagCall:
    bounded = Request(request.scope, _bounded_receive(request.receive, limits.max_body_bytes))
    images: list[bytes | RequestError] = []
    fields = query_fields(request)
    try:
        async with bounded.form(max_files=limits.max_images_per_request, max_fields=MAX_FORM_FIELDS) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    images.append(within(await value.read(limits.max_image_bytes + 1), limits.max_image_bytes))
                else:
                    add_field(fields, name, value)
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise PayloadTooLarge(f"The form holds more than {limits.max_images_per_request} files.") from error
        raise InvalidRequest("The multipart form cannot be read. Check its boundary and its fields.") from error
    parameters = validated(TagParameters, fields)
    return TagCall(tuple(images), parameters.options(limits), many=len(images) > 1, parameters=parameters)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read a body while its size is counted.

    Raises:
        PayloadTooLarge: It is, or says that it is, larger.
        InvalidRequest: The client left.
    """
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced) > max_bytes:
        raise too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    async for chunk in _stream(request):
        size += len(chunk)
        if size > max_bytes:
            raise too_large(max_bytes)
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
            raise too_large(max_bytes)
        return message

    return bounded
