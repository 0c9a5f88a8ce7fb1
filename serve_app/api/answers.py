"""The JSON of answers and errors: the plugin host's contract, and one shape for everything that went wrong."""

import time
from typing import Any

from starlette.responses import JSONResponse

from serve_app import __version__
from serve_app.api.bodies import TagCall
from serve_app.api.statuses import RETRY_AFTER_S, status_of
from serve_app.errors import TaggerError
from serve_app.tagger import TagAnswer
from serve_app.tagging.selection import TagScore

SIGNIFICANT_DIGITS = 6
"""Of scores, not decimals: a true tag of SigLIP may well have a confidence of 0.00002."""


def tag_response(call: TagCall, answer: TagAnswer, model: str, started_s: float) -> JSONResponse:
    """Return the answer to `POST /v1/tag`: one object for one picture, `results` in order for many.

    Raises:
        TaggerError: One picture was sent and it failed.
    """
    about = {"model": model, "version": __version__, "inference_time_ms": round((time.perf_counter() - started_s) * 1000, 2)}
    if call.many:
        results = [_result(outcome, answer.include_raw_scores) for outcome in answer.outcomes]
        return JSONResponse({"results": results} | about)
    (outcome,) = answer.outcomes
    if isinstance(outcome, TaggerError):
        raise outcome
    return JSONResponse({"tags": _tags(outcome, answer.include_raw_scores)} | about)


def error_response(error: TaggerError) -> JSONResponse:
    """Return the JSON of an error with its status."""
    status = status_of(error)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else None
    return JSONResponse(error_body(error.code, error.message), status, headers)


def error_body(code: str, message: str) -> dict[str, Any]:
    """Return the one shape of everything that went wrong."""
    return {"error": {"code": code, "message": message}}


def shorten(score: float) -> float:
    """Return a score to `SIGNIFICANT_DIGITS`."""
    return float(f"{score:.{SIGNIFICANT_DIGITS}g}")


def _result(outcome: tuple[TagScore, ...] | TaggerError, raw_scores: bool) -> dict[str, Any]:
    if isinstance(outcome, TaggerError):
        return error_body(outcome.code, outcome.message)
    return {"tags": _tags(outcome, raw_scores)}


def _tags(tags: tuple[TagScore, ...], raw_scores: bool) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = [{"label": tag.label, "confidence": shorten(tag.confidence)} for tag in tags]
    if raw_scores:
        for entry, tag in zip(shown, tags, strict=True):
            entry["raw_score"] = shorten(tag.logit)
    return shown
