"""The JSON of responses: the plugin host's contract.

Not here: the JSON of errors (`error_shapes.py`).
"""

import base64
import time
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from serve_app import __version__
from serve_app.api.bodies import TagCall
from serve_app.api.error_shapes import error_body
from serve_app.api.json_responses import json_response, too_large_to_send
from serve_app.pipeline.tagged_image import TaggedImage
from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.selection import TagScore

SCORED_BY = ("vocabulary", "vocabulary_fingerprint", "score")
"""Fields of `ScoredBy` that clients see."""
SIGNIFICANT_DIGITS = 6
"""Of scores, not decimals: a true tag of SigLIP may well have a confidence of 0.00002."""
MIN_VALUE_BYTES = 3
"""JSON of a number in a list, such as `1.,`; a tag has more than ten times as many."""


async def tag_response(
    call: TagCall, images: Sequence[TaggedImage], model: str, started_s: float, max_bytes: int
) -> Response:
    """Return the response of `POST /v1/tag`: one object for one image, `results` in order for many.

    Raises:
        TaggerError: One image was sent and it failed.
        PayloadTooLarge: The response would have more than `max_bytes`.
    """
    if not call.many and images[0].error is not None:
        raise images[0].error
    about = _about(images, model, started_s)
    num_values = sum(count_values(image, call) for image in images)
    check_size(num_values, max_bytes)
    if not call.many:
        return await json_response(_result(images[0], call) | about, num_values, max_bytes)
    results = (_result(image, call) for image in images)
    return await json_response({"results": results} | about, num_values, max_bytes)


def result_line(image: TaggedImage, call: TagCall, model: str) -> dict[str, Any]:
    """Return what a line of a streamed response says of its image."""
    about = _scored_by([image]) | {"model": model, "version": __version__}
    return _result(image, call) | about


async def score_response(
    images: Sequence[TaggedImage], model: str, started_s: float, max_bytes: int
) -> Response:
    """Return the response of `POST /v1/score`: `results` in the order of the embeddings.

    Raises:
        PayloadTooLarge: It would have more than `max_bytes`.
    """
    num_values = sum(len(image.tags) for image in images)
    check_size(num_values, max_bytes)
    results = (_tags_or_error(image) for image in images)
    content = {"results": results} | _about(images, model, started_s)
    return await json_response(content, num_values, max_bytes)


def count_values(image: TaggedImage, call: TagCall) -> int:
    """Return the number of tags, and of numbers of the embedding, in an image's result."""
    num_values = len(image.tags)
    if call.with_embeddings and call.parameters.encoding_format == "float":
        num_values += 0 if image.embed is None else len(image.embed)
    return num_values


def check_size(num_values: int, max_bytes: int) -> None:
    """Refuse a response that is too large however short its values are, before it is written.

    Raises:
        PayloadTooLarge: It would have more than `max_bytes`.
    """
    if num_values * MIN_VALUE_BYTES > max_bytes:
        raise too_large_to_send(max_bytes)


def shorten(score: float) -> float:
    """Return a score to `SIGNIFICANT_DIGITS`."""
    return float(f"{score:.{SIGNIFICANT_DIGITS}g}")


def _about(images: Sequence[TaggedImage], model: str, started_s: float) -> dict[str, Any]:
    """Return the fields of the whole response: what images were scored against, and the host's."""
    elapsed_ms = round((time.perf_counter() - started_s) * 1000, 2)
    about = {"model": model, "version": __version__, "inference_time_ms": elapsed_ms}
    return _scored_by(images) | about


def _scored_by(images: Sequence[TaggedImage]) -> dict[str, Any]:
    """Return what images were scored against, which is the same for all; nothing if all failed."""
    scored = next((image.scored for image in images if image.scored is not None), None)
    return {} if scored is None else {name: getattr(scored, name) for name in SCORED_BY}


def _result(image: TaggedImage, call: TagCall) -> dict[str, Any]:
    result = _tags_or_error(image)
    if image.error is not None:
        return result
    if call.options.quality == "high":
        result["metadata"] = {"quality": "high", "views": image.num_views}
    if call.with_embeddings and image.embed is not None:
        result["embedding"] = encode_embedding(image.embed, call.parameters.encoding_format)
    return result


def _tags_or_error(image: TaggedImage) -> dict[str, Any]:
    if image.error is not None:
        return error_body(image.error.code, image.error.message)
    raw_scores = image.scored is not None and image.scored.include_raw_scores
    return {"tags": _tags(image.tags, raw_scores)}


def encode_embedding(embed: FloatArray, encoding_format: str) -> list[float] | str:
    """Return an embedding as OpenAI's API does: numbers, or base64 of little-endian float32."""
    if encoding_format == "base64":
        return base64.b64encode(embed.astype("<f4").tobytes()).decode()
    return [shorten(value) for value in embed.tolist()]


def _tags(tags: tuple[TagScore, ...], raw_scores: bool) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = [
        {"label": tag.label, "confidence": shorten(tag.confidence)} for tag in tags
    ]
    if raw_scores:
        for entry, tag in zip(shown, tags, strict=True):
            entry["raw_score"] = shorten(tag.logit)
    return shown
