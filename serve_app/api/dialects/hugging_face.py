"""What Hugging Face's clients send: `InferenceClient(model=".../hf")` and huggingface.js, for zero-shot and plain classification.

Source: huggingface_hub `InferenceClient.zero_shot_image_classification` and `.image_classification`; huggingface.js
`zeroShotImageClassification`; the Inference Endpoints toolkit's `POST /` and `/predict`. Answers are a list, the best first.
"""

from typing import Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve_app.api.answers import shorten
from serve_app.api.bodies import EncodedImage, tag_bounds
from serve_app.api.dialects.shapes import with_errors
from serve_app.api.json_bodies import read_json_object
from serve_app.api.long_texts import LongText
from serve_app.api.openapi import EXAMPLE_IMAGE
from serve_app.api.parameters import Listed, check_label_count, validated
from serve_app.api.sources import ImageSources
from serve_app.api.streams import read_body
from serve_app.config import Limits
from serve_app.errors import InvalidRequest, RequestError, TaggerError
from serve_app.tagger import Tagger
from serve_app.tagging.prompts import check_templates
from serve_app.tagging.scores import Score
from serve_app.tagging.settings import TagOptions
from serve_app.tagging.vocabulary import make_vocabulary

PATHS = ("/hf", "/predict", "/")
DEFAULT_TEMPLATE = "This is a photo of {}."
"""Source: the pipeline's `hypothesis_template`."""
_SCORES: dict[str, Score] = {"sigmoid": "sigmoid", "softmax": "softmax", "none": "logit"}


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    candidate_labels: Listed | None = None
    hypothesis_template: str | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")

    inputs: EncodedImage | dict[str, Any]
    parameters: dict[str, Any] | None = None


def add_hugging_face(app: FastAPI, tagger: Tagger, sources: ImageSources) -> None:
    """Add the routes that Hugging Face's clients are pointed at."""

    @with_errors(error_shape)
    async def classify(request: Request) -> Response:
        image, options = await _read(request, sources)
        (outcome,) = (await tagger.tag([image], options)).outcomes
        if isinstance(outcome, TaggerError):
            raise outcome
        return JSONResponse([{"label": tag.label, "score": shorten(tag.confidence)} for tag in outcome])

    for path in PATHS:
        app.add_api_route(
            path, classify, methods=["POST"], summary="Classify an image (Hugging Face)", openapi_extra=_REQUEST, responses=_RESPONSES,
            operation_id=f"hugging_face{path.replace('/', '_')}",
        )  # fmt: skip


def error_shape(error: TaggerError, status: int) -> dict[str, Any]:
    """Return an error as the Inference Endpoints toolkit writes it."""
    return {"error": error.message, "error_code": error.code}


async def _read(request: Request, sources: ImageSources) -> tuple[bytes, TagOptions]:
    limits = sources.limits
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        data = await read_body(request, min(limits.max_body_bytes, limits.max_image_bytes))
        if not data:
            raise InvalidRequest("The request holds no image.")
        return data, TagOptions()
    body = validated(_Body, await read_json_object(request, limits, tag_bounds(limits)))
    parameters = dict(body.parameters or {})
    inputs: Any = body.inputs
    if isinstance(inputs, dict):  # huggingface.js, and endpoints whose inputs are a pipeline's arguments
        parameters |= {key: value for key, value in inputs.items() if key not in ("image", "images")}
        inputs = inputs.get("image", inputs.get("images"))
    if not isinstance(inputs, str | LongText):
        raise InvalidRequest("inputs must be the image in base64, or an object with image.")
    (image,) = await sources.images([inputs])
    if isinstance(image, RequestError):
        raise image
    return image, _options(validated(_Parameters, {k: v for k, v in parameters.items() if v is not None}), limits)


def _options(parameters: _Parameters, limits: Limits) -> TagOptions:
    """Return what our own parameters call the same: all candidates are scored and given, whatever their score."""
    score = _SCORES[parameters.function_to_apply] if parameters.function_to_apply else None
    if parameters.candidate_labels is None:
        if parameters.hypothesis_template is not None:
            raise InvalidRequest("hypothesis_template is for candidate_labels, which are not given.")
        count = parameters.top_k
        return TagOptions(score=score, max_tags=count, min_tags=count)
    labels = parameters.candidate_labels
    check_label_count(len(labels), limits)
    template = parameters.hypothesis_template or DEFAULT_TEMPLATE
    check_templates((template,))
    kept = make_vocabulary(labels, (template,), limits.max_labels_per_request).labels
    count = min(parameters.top_k or len(kept), len(kept))
    return TagOptions(labels=kept, prompt_templates=(template,), confidence_threshold=0.0, max_tags=count, min_tags=count, score=score)


_REQUEST: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {
                "schema": _Body.model_json_schema(),
                "example": {"inputs": EXAMPLE_IMAGE, "parameters": {"candidate_labels": ["red circle", "blue star"]}},
            },
        },
    }
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "Labels and scores, the best first."},
    **{status: {"description": "As for /v1/tag; the body is {error, error_code}."} for status in (400, 413, 415, 422, 429, 500, 503, 504)},
}
