"""The JSON of responses and errors: the plugin host's contract, and one shape for every error."""

import base64
import time
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse, Response

from serve_app import __version__
from serve_app.api.bodies import TagCall
from serve_app.api.json_responses import json_response, too_large_to_send
from serve_app.api.statuses import headers_of, status_of
from serve_app.errors import TaggerError
from serve_app.pipeline.tagger import TagAnswer
from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.selection import TagScore
from serve_app.telemetry.record import note_code

ErrorShape = Callable[[TaggerError, int], dict[str, Any]]
"""From an error and its status to the JSON that a client of some dialect expects."""
SCORED_BY = ("vocabulary", "vocabulary_fingerprint", "score")
"""Fields of `ScoredBy` that clients see."""
SIGNIFICANT_DIGITS = 6
"""Of scores, not decimals: a true tag of SigLIP may well have a confidence of 0.00002."""
MIN_VALUE_BYTES = 3
"""JSON of a number in a list, such as `1.,`; a tag has more than ten times as many."""


async def tag_response(
    call: TagCall, answer: TagAnswer, model: str, started_s: float, max_bytes: int
) -> Response:
    """Return the response of `POST /v1/tag`: one object for one image, `results` in order for many.

    Raises:
        TaggerError: One image was sent and it failed.
        PayloadTooLarge: The response would have more than `max_bytes`.
    """
    if not call.many and isinstance(answer.outcomes[0], TaggerError):
        raise answer.outcomes[0]
    about = _about(answer, model, started_s)
    num_values = count_values(answer, call.parameters.encoding_format)
    check_size(num_values, max_bytes)
    if call.many:
        results = (_result(answer, i, call) for i in range(len(answer.outcomes)))
        return await json_response({"results": results} | about, num_values, max_bytes)
    return await json_response(_result(answer, 0, call) | about, num_values, max_bytes)


def result_line(answer: TagAnswer, call: TagCall, model: str) -> dict[str, Any]:
    """Return what a line of a streamed response says of its one image."""
    by = {} if answer.scored is None else dict(zip(SCORED_BY, answer.scored, strict=False))
    return _result(answer, 0, call) | by | {"model": model, "version": __version__}


async def score_response(
    answer: TagAnswer, model: str, started_s: float, max_bytes: int
) -> Response:
    """Return the response of `POST /v1/score`: `results` in the order of the embeddings.

    Raises:
        PayloadTooLarge: It would have more than `max_bytes`.
    """
    num_values = count_values(answer)
    check_size(num_values, max_bytes)
    raw_scores = answer.scored is not None and answer.scored.include_raw_scores
    results = (
        error_body(outcome.code, outcome.message)
        if isinstance(outcome, TaggerError)
        else {"tags": _tags(outcome, raw_scores)}
        for outcome in answer.outcomes
    )
    content = {"results": results} | _about(answer, model, started_s)
    return await json_response(content, num_values, max_bytes)


def count_values(answer: TagAnswer, encoding_format: str = "base64") -> int:
    """Return how many tags and numbers of embeddings a response holds."""
    num_tags = sum(len(o) for o in answer.outcomes if not isinstance(o, TaggerError))
    if encoding_format == "base64" or answer.image_embeds is None:
        return num_tags
    return num_tags + sum(len(embed) for embed in answer.image_embeds if embed is not None)


def check_size(num_values: int, max_bytes: int) -> None:
    """Refuse a response that is too large however short its values are, before it is written.

    Raises:
        PayloadTooLarge: It would have more than `max_bytes`.
    """
    if num_values * MIN_VALUE_BYTES > max_bytes:
        raise too_large_to_send(max_bytes)


def own_shape(error: TaggerError, status: int) -> dict[str, Any]:
    """Return an error as our own API writes it."""
    return error_body(error.code, error.message)


def error_response(error: TaggerError, shape: ErrorShape = own_shape) -> JSONResponse:
    """Return the JSON of an error with its status, in the shape that the client expects; the
    request's record has its code.
    """
    note_code(error.code)
    status = status_of(error)
    return JSONResponse(shape(error, status), status, headers_of(status))


def error_body(code: str, message: str) -> dict[str, Any]:
    """Return the one shape of everything that went wrong."""
    return {"error": {"code": code, "message": message}}


def shorten(score: float) -> float:
    """Return a score to `SIGNIFICANT_DIGITS`."""
    return float(f"{score:.{SIGNIFICANT_DIGITS}g}")


def _about(answer: TagAnswer, model: str, started_s: float) -> dict[str, Any]:
    """Return what is said of the whole answer: by what it was scored, and what the plugin host
    knows.
    """
    scored = answer.scored
    by = {} if scored is None else dict(zip(SCORED_BY, scored, strict=False))
    elapsed_ms = round((time.perf_counter() - started_s) * 1000, 2)
    return by | {"model": model, "version": __version__, "inference_time_ms": elapsed_ms}


def _result(answer: TagAnswer, at: int, call: TagCall) -> dict[str, Any]:
    outcome = answer.outcomes[at]
    if isinstance(outcome, TaggerError):
        return error_body(outcome.code, outcome.message)
    result: dict[str, Any] = {
        "tags": _tags(outcome, answer.scored is not None and answer.scored.include_raw_scores)
    }
    if call.options.quality == "high":
        result["metadata"] = {"quality": "high", "views": answer.views[at]}
    embed = answer.image_embeds[at] if answer.image_embeds is not None else None
    if embed is not None:
        result["embedding"] = encode_embedding(embed, call.parameters.encoding_format)
    return result


def encode_embedding(embed: FloatArray, encoding_format: str) -> list[float] | str:
    """Return an embedding as OpenAI's API writes them: numbers, or base64 of little-endian
    float32.
    """
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
