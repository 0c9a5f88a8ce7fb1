"""The transports of `POST /v1/tag`: a raw image, a form with files, or JSON. Each has a parser;
they share the validation.

Sizes are enforced while the body arrives, so a request that is too large is refused before it is in
memory.

Not here: how JSON is parsed (`json_bodies.py`).
"""

from dataclasses import dataclass

from pydantic import Field, InstanceOf
from pydantic.json_schema import SkipJsonSchema
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from serve_app.api.json_bodies import read_json_object
from serve_app.api.json_values import JsonBounds
from serve_app.api.long_texts import LONG_TEXT_BYTES, LongText
from serve_app.api.parameters import (
    MAX_FILTERS,
    TagParameters,
    query_fields,
    validated,
)
from serve_app.api.sources import ImageSources, too_many_images, within
from serve_app.api.streams import bounded_receive, read_body
from serve_app.api.text_fields import query_pairs, text_fields
from serve_app.config.limits import Limits
from serve_app.errors import InvalidRequest, PayloadTooLarge, RequestError
from serve_app.tagging.options import TagOptions

MAX_FORM_FIELDS = 100
MAX_FIELD_BYTES = LONG_TEXT_BYTES
"""Bytes of one form field that is not a file; 1,000 labels of 64 ASCII characters fit."""

EncodedImage = str | SkipJsonSchema[InstanceOf[LongText]]
"""A text of a JSON body. `LongText` is an implementation detail and does not appear in OpenAPI."""


class TagBody(TagParameters):
    """The JSON form of a request: `image` or `images`, base64, data URIs or URLs, beside the
    parameters.
    """

    image: EncodedImage | None = Field(
        None,
        description="One image: base64, a data URI, or a URL if the service fetches images.",
    )
    images: tuple[EncodedImage, ...] | None = Field(
        None, description="Several images, each in the form of image."
    )


NO_PARAMETERS = TagParameters()
NO_OPTIONS = TagOptions()


@dataclass(frozen=True, slots=True)
class TagCall:
    """A request, whatever its transport.

    Attributes:
        images: Encoded images, or the error of one that could not even be unpacked, in order.
        options: How they are tagged.
        many: Whether the response is a list even for one image.
        parameters: The options before they were checked, with what concerns only the response's
            form.
    """

    images: tuple[bytes | RequestError, ...]
    options: TagOptions
    many: bool
    parameters: TagParameters = NO_PARAMETERS

    @property
    def with_embeddings(self) -> bool:
        """Whether the response has the images' embeddings."""
        return self.parameters.returned == "embedding"


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
        case _:  # includes application/x-www-form-urlencoded, the default of curl --data-binary
            call = await _read_raw(request, limits)
    if not call.images:
        raise InvalidRequest(
            "The request holds no image. Send one as the body, as a form file, or as image in JSON."
        )
    if len(call.images) > limits.max_images_per_request:
        raise too_many_images(len(call.images), limits)
    return call


async def _read_raw(request: Request, limits: Limits) -> TagCall:
    data = await read_body(request, min(limits.max_body_bytes, limits.max_image_bytes))
    images = (data,) if data else ()
    if not request.scope.get("query_string"):
        return TagCall(images, NO_OPTIONS, many=False)
    parameters = validated(TagParameters, query_fields(request))
    return TagCall(images, parameters.options(limits), many=False, parameters=parameters)


async def _read_json(request: Request, sources: ImageSources) -> TagCall:
    limits = sources.limits
    content = await read_json_object(request, limits, tag_bounds(limits))
    body = validated(TagBody, content | query_fields(request))
    if (body.image is None) == (body.images is None):
        raise InvalidRequest("Send exactly one of image and images.")
    options = body.options(limits)
    images = await sources.images(body.images if body.images is not None else (body.image or "",))
    return TagCall(images, options, many=body.images is not None, parameters=body)


def tag_bounds(limits: Limits) -> JsonBounds:
    """Return what the JSON form of a request may hold."""
    return JsonBounds(
        max_items=max(MAX_FILTERS, limits.max_labels_per_request),
        counted={"images": limits.max_images_per_request},
    )


async def _read_form(request: Request, limits: Limits) -> TagCall:
    bounded = Request(request.scope, bounded_receive(request.receive, limits.max_body_bytes))
    images: list[bytes | RequestError] = []
    pairs = query_pairs(request)
    form = bounded.form(
        max_files=limits.max_images_per_request,
        max_fields=MAX_FORM_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        async with form as parts:
            for name, value in parts.multi_items():
                if isinstance(value, UploadFile):
                    data = await value.read(limits.max_image_bytes + 1)
                    await value.close()  # frees the copy that the parser holds
                    images.append(within(data, limits.max_image_bytes))
                elif name in ("image", "images"):
                    raise InvalidRequest(
                        f"{name} is a text field of the form. Send the image as a file, "
                        "or the request as JSON."
                    )
                else:
                    pairs.append((name, value))
    except HTTPException as error:
        raise _form_error(error.detail, limits) from error
    parameters = validated(TagParameters, text_fields(pairs, TagParameters))
    options = parameters.options(limits)
    return TagCall(tuple(images), options, many=len(images) > 1, parameters=parameters)


def _form_error(message: str, limits: Limits) -> RequestError:
    """Return our error for one of Starlette's form parser, which differ only by their message."""
    if "Too many files" in message:
        return PayloadTooLarge(
            f"The form holds more than {limits.max_images_per_request:,} files. "
            "Send fewer in one request."
        )
    if "Too many fields" in message:
        return InvalidRequest(f"The form holds more than {MAX_FORM_FIELDS} fields; send fewer.")
    if "exceeded maximum size" in message:
        return PayloadTooLarge(
            f"A form field has more than {MAX_FIELD_BYTES:,} bytes. "
            "Send images as files, and long lists of labels as JSON."
        )
    return InvalidRequest("The multipart form cannot be read. Check its boundary and its fields.")
