"""Hugging Face's API: zero-shot and plain image classification.

Its clients are `InferenceClient(model=".../hf")` and huggingface.js.

Source: huggingface_hub `InferenceClient.zero_shot_image_classification` and
`.image_classification`; huggingface.js `zeroShotImageClassification`; the Inference Endpoints
toolkit's `POST /` and `/predict`, which also reads parameters from the query string. What zero-shot
classification returns is what transformers' pipeline returns: one entry for each candidate label,
as it was sent, with SigLIP's sigmoid as its score, the best first, whatever the service is
configured to select.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve_app.api.answers import shorten
from serve_app.api.bodies import EncodedImage, tag_bounds
from serve_app.api.json_bodies import read_json_object
from serve_app.api.long_texts import LongText
from serve_app.api.openapi import EXAMPLE_IMAGE, body_schema, query_parameters
from serve_app.api.parameters import Listed, validated
from serve_app.api.routes import ApiRoute, Routes
from serve_app.api.sources import ImageSources
from serve_app.api.streams import read_body
from serve_app.api.text_fields import query_pairs, text_fields
from serve_app.config.limits import Limits
from serve_app.errors import InvalidRequest, RequestError, TaggerError
from serve_app.pipeline.tagged_image import TaggedImage
from serve_app.pipeline.tagger import Tagger
from serve_app.siglip.scoring import sigmoid
from serve_app.tagging.choices import Score
from serve_app.tagging.options import TagOptions, check_label_count, requested_vocabulary
from serve_app.tagging.prompts import PLACEHOLDERS, check_templates
from serve_app.tagging.selection import TagScore
from serve_app.untrusted.problems import nearest

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


@dataclass(frozen=True, slots=True)
class _Call:
    """A request.

    Attributes:
        image: Encoded.
        options: How it is tagged.
        candidates: Labels of the request as they were sent; None for the service's own vocabulary.
        top_k: Maximum number of entries for `candidates`; None for all.
    """

    image: bytes
    options: TagOptions
    candidates: tuple[str, ...] | None = None
    top_k: int | None = None


def hugging_face_routes(tagger: Tagger, sources: ImageSources) -> list[ApiRoute]:
    """Return the routes that Hugging Face's clients call."""
    routes = Routes(error_shape)

    async def classify(request: Request) -> Response:
        call = await _read(request, sources)
        (image,) = await tagger.tag([call.image], call.options)
        if image.error is not None:
            raise image.error
        if call.candidates is not None:
            return JSONResponse(_of_candidates(image.tags, call.candidates)[: call.top_k])
        return JSONResponse(_of_vocabulary(image, call.options))

    for path in PATHS:
        routes.post(
            path,
            summary="Classify an image (Hugging Face)",
            request=_REQUEST,
            responses=_RESPONSES,
            operation_id=f"hugging_face{path.replace('/', '_')}",
        )(classify)
    return routes.collected


def error_shape(error: TaggerError, status: int) -> dict[str, Any]:
    """Return an error as the Inference Endpoints toolkit writes it."""
    return {"error": error.message, "error_code": error.code}


async def _read(request: Request, sources: ImageSources) -> _Call:
    limits = sources.limits
    query = text_fields((pair for pair in query_pairs(request) if _is_ours(pair[0])), _Parameters)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        data = await read_body(request, min(limits.max_body_bytes, limits.max_image_bytes))
        if not data:
            raise InvalidRequest(
                "The request holds no image. Send one as the body, or as inputs in JSON."
            )
        return _call(data, validated(_Parameters, query), limits)
    body = validated(_Body, await read_json_object(request, limits, tag_bounds(limits)))
    parameters = {key: value for key, value in (body.parameters or {}).items() if value is not None}
    inputs: Any = body.inputs
    # huggingface.js, and endpoints whose inputs are a pipeline's arguments
    if isinstance(inputs, dict):
        parameters |= {
            key: value
            for key, value in inputs.items()
            if key not in ("image", "images") and value is not None
        }
        inputs = inputs.get("image") or inputs.get("images")
    if not isinstance(inputs, str | LongText):
        raise InvalidRequest("inputs must be the image in base64, or an object with image.")
    checked = validated(_Parameters, parameters | query)
    (image,) = await sources.images([inputs])
    if isinstance(image, RequestError):
        raise image
    return _call(image, checked, limits)


def _is_ours(name: str) -> bool:
    """Return whether a query parameter is one of this dialect, or a misspelt one.

    Gateways add others, such as `key`.
    """
    return nearest(name, _Parameters.model_fields, cutoff=0.8) is not None


def _call(image: bytes, parameters: _Parameters, limits: Limits) -> _Call:
    """Return the request in our own options: all candidates are returned, whatever their score."""
    score = _SCORES[parameters.function_to_apply] if parameters.function_to_apply else None
    top_k = parameters.top_k
    if parameters.candidate_labels is None:
        if parameters.hypothesis_template is not None:
            raise InvalidRequest(
                "hypothesis_template needs candidate_labels. Send both, or leave it out."
            )
        return _Call(
            image, TagOptions(score=score, max_tags=top_k, min_tags=top_k, sort_by="confidence")
        )
    # clients split a text at its commas, and one at its end leaves an empty label
    candidates = tuple(label for label in parameters.candidate_labels if label.strip())
    check_label_count(len(candidates), limits.max_labels_per_request)
    template = parameters.hypothesis_template or DEFAULT_TEMPLATE
    _check_template(template)
    requested = requested_vocabulary(candidates, (template,))
    num_labels = len(requested.labels or ())
    options = TagOptions(
        vocabulary=requested,
        confidence_threshold=0.0,
        max_tags=num_labels,
        min_tags=num_labels,
        score=score or "sigmoid",
        sort_by="confidence",
    )
    return _Call(image, options, candidates, top_k)


def _check_template(template: str) -> None:
    if sum(template.count(placeholder) for placeholder in PLACEHOLDERS) != 1:
        raise InvalidRequest(
            "hypothesis_template must contain {} exactly once, in the place of the label."
        )
    check_templates((template,))


def _of_candidates(tags: tuple[TagScore, ...], candidates: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return an entry for each candidate as it was sent, repeats included, the best first."""
    confidences = {tag.label: tag.confidence for tag in tags}
    best_first = sorted(candidates, key=lambda label: -confidences[label.strip()])
    return [_entry(label, confidences[label.strip()]) for label in best_first]


def _of_vocabulary(image: TaggedImage, options: TagOptions) -> list[dict[str, Any]]:
    """Return an entry for each tag. Logits are returned only if the client asked for them."""
    is_logit = image.scored is not None and image.scored.score == "logit"
    if is_logit and options.score != "logit":
        return [_entry(tag.label, _sigmoid(tag.confidence)) for tag in image.tags]
    return [_entry(tag.label, tag.confidence) for tag in image.tags]


def _entry(label: str, score: float) -> dict[str, Any]:
    return {"label": label, "score": shorten(score)}


def _sigmoid(logit: float) -> float:
    return float(sigmoid(np.array([logit], np.float32))[0])


_REQUEST: dict[str, Any] = {
    "parameters": query_parameters(_Parameters),
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {
                "schema": body_schema(_Body),
                "example": {
                    "inputs": EXAMPLE_IMAGE,
                    "parameters": {"candidate_labels": ["red circle", "blue star"]},
                },
            },
        },
    },
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "Labels and scores, the best first."},
    **{
        status: {"description": "As for /v1/tag; the body is {error, error_code}."}
        for status in (400, 413, 415, 422, 429, 500, 503, 504)
    },
}
