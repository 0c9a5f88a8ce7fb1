"""The JSON of answers and errors: the plugin host's contract, and one shape for everything that went wrong."""

import base64
import time
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse

from serve_app import __version__
from serve_app.api.bodies import TagCall
from serve_app.api.statuses import headers_of, status_of
from serve_app.errors import TaggerError
from serve_app.observed import note_code
from serve_app.siglip.inputs import FloatArray
from serve_app.tagger import TagAnswer
from serve_app.tagging.selection import TagScore

ErrorShape = Callable[[TaggerError, int], dict[str, Any]]
"""From an error and its status to the JSON that a client of some dialect expects."""
SCORED_BY = ("vocabulary", "vocabulary_fingerprint", "score")
"""Fields of `ScoredBy` that clients see."""
SIGNIFICANT_DIGITS = 6
"""Of scores, not decimals: a true tag of SigLIP may well have a confidence of 0.00002."""


def tag_response(call: TagCall, answer: TagAnswer, model: str, started_s: float) -> JSONResponse:
    """Return the answer to `POST /v1/tag`: one object for one picture, `results` in order for many.

    Raises:
        TaggerError: One picture was sent and it failed.
    """
    if not call.many and isinstance(answer.outcomes[0], TaggerError):
        raise answer.outcomes[0]
    results = [_result(answer, at, call) for at in range(len(answer.outcomes))]
    about = _about(answer, model, started_s)
    return JSONResponse({"results": results} | about if call.many else results[0] | about)


def result_line(answer: TagAnswer, call: TagCall, model: str) -> dict[str, Any]:
    """Return what a line of a streamed answer says of its one picture."""
    by = {} if answer.scored is None else dict(zip(SCORED_BY, answer.scored, strict=False))
    return _result(answer, 0, call) | by | {"model": model, "version": __version__}


def score_response(answer: TagAnswer, model: str, started_s: float) -> JSONResponse:
    """Return the answer to `POST /v1/score`: `results` in the order of the embeddings."""
    raw_scores = answer.scored is not None and answer.scored.include_raw_scores
    results = [error_body(o.code, o.message) if isinstance(o, TaggerError) else {"tags": _tags(o, raw_scores)} for o in answer.outcomes]
    return JSONResponse({"results": results} | _about(answer, model, started_s))


def own_shape(error: TaggerError, status: int) -> dict[str, Any]:
    """Return an error as our own API writes it."""
    return error_body(error.code, error.message)


def error_response(error: TaggerError, shape: ErrorShape = own_shape) -> JSONResponse:
    """Return the JSON of an error with its status, in the shape that the client expects; the request's record has its code."""
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
    """Return what is said of the whole answer: by what it was scored, and what the plugin host knows."""
    scored = answer.scored
    by = {} if scored is None else dict(zip(SCORED_BY, scored, strict=False))
    elapsed_ms = round((time.perf_counter() - started_s) * 1000, 2)
    return by | {"model": model, "version": __version__, "inference_time_ms": elapsed_ms}


def _result(answer: TagAnswer, at: int, call: TagCall) -> dict[str, Any]:
    outcome = answer.outcomes[at]
    if isinstance(outcome, TaggerError):
        return error_body(outcome.code, outcome.message)
    result: dict[str, Any] = {"tags": _tags(outcome, answer.scored is not None and answer.scored.include_raw_scores)}
    if call.options.quality == "high":
        result["metadata"] = {"quality": "high", "views": answer.views[at]}
    embed = answer.image_embeds[at] if answer.image_embeds is not None else None
    if embed is not None:
        result["embedding"] = encode_embedding(embed, call.parameters.encoding_format)
    return result


def encode_embedding(embed: FloatArray, encoding_format: str) -> list[float] | str:
    """Return an embedding as OpenAI's API writes them: numbers, or base64 of little-endian float32."""
    if encoding_format == "base64":
        return base64.b64encode(embed.astype("<f4").tobytes()).decode()
    return [shorten(value) for value in embed.tolist()]


def _tags(tags: tuple[TagScore, ...], raw_scores: bool) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = [{"label": tag.label, "confidence": shorten(tag.confidence)} for tag in tags]
    if raw_scores:
        for entry, tag in zip(shown, tags, strict=True):
            entry["raw_score"] = shorten(tag.logit)
    return shown
