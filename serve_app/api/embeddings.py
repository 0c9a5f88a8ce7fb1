"""The body of `POST /v1/score`: image embeddings that were stored, as numbers or base64."""

import asyncio
import base64
import binascii
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field
from starlette.requests import Request

from serve_app.api.bodies import read_json_object
from serve_app.api.parameters import ScoreParameters, query_fields, validated
from serve_app.config import Limits
from serve_app.errors import InvalidRequest, PayloadTooLarge
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.scoring import stored_embeddings
from serve_app.tagging.settings import TagOptions

DTYPES = {"float32": "<f4", "float16": "<f2"}


class ScoreBody(ScoreParameters):
    """Embeddings beside the parameters."""

    embeddings: tuple[tuple[float, ...] | str, ...] = Field(
        description="Image embeddings of this checkpoint: lists of D numbers, or base64 of D little-endian numbers of dtype."
    )
    dtype: Literal["float32", "float16"] = Field("float32", description="Of the numbers in base64.")


@dataclass(frozen=True, slots=True)
class ScoreCall:
    """A request to score: `image_embeds` (B, D) float32, unit norm, and how."""

    image_embeds: FloatArray
    options: TagOptions


async def read_score_call(request: Request, limits: Limits) -> ScoreCall:
    """Read a request to score embeddings.

    Raises:
        PayloadTooLarge: More bytes or embeddings than `limits` allow.
        InvalidRequest: The body or a parameter cannot be read.
    """
    return await asyncio.to_thread(_parse, await read_json_object(request, limits), query_fields(request), limits)


def _parse(content: dict[str, Any], query: dict[str, Any], limits: Limits) -> ScoreCall:
    given = content.get("embeddings")
    if isinstance(given, list) and len(given) > limits.max_embeddings_per_request:
        raise PayloadTooLarge(f"The request holds {len(given):,} embeddings; at most {limits.max_embeddings_per_request:,} are taken.")
    body = validated(ScoreBody, content | query)
    if not body.embeddings:
        raise InvalidRequest("embeddings is empty; give at least one.")
    rows = [_row(at, value, DTYPES[body.dtype]) for at, value in enumerate(body.embeddings)]
    if len({len(row) for row in rows}) > 1:
        raise InvalidRequest("The embeddings have different lengths; all must be of one checkpoint.")
    return ScoreCall(stored_embeddings(np.stack(rows)), body.options(limits))


def _row(at: int, value: tuple[float, ...] | str, dtype: str) -> FloatArray:
    if not isinstance(value, str):
        with np.errstate(over="ignore"):  # an infinity is refused by `stored_embeddings`
            return np.array(value, np.float32)
    try:
        return np.frombuffer(base64.b64decode("".join(value.split()), validate=True), dtype).astype(np.float32)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"Embedding {at} is not base64 of whole numbers of its dtype.") from error
