"""The body of `POST /v1/score`: stored image embeddings, as numbers or base64."""

import binascii
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, PlainValidator, WithJsonSchema
from starlette.requests import Request

from serve_app.api.json_bodies import read_json_object
from serve_app.api.json_values import JsonBounds
from serve_app.api.parameters import MAX_FILTERS, ScoreParameters, query_fields, validated
from serve_app.api.threads import off_loop
from serve_app.config.limits import Limits
from serve_app.errors import InvalidRequest
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.scoring import stored_embeddings
from serve_app.tagging.options import TagOptions

DTYPES = {"float32": "<f4", "float16": "<f2"}
MAX_WIDTH = 4_096
"""Numbers of one embedding; the widest SigLIP checkpoint has 1,536."""


def _check_embedding(value: Any) -> FloatArray | str:
    if isinstance(value, np.ndarray | str):
        return value
    raise ValueError("each must be a list of numbers, or base64")


Embedding = Annotated[
    FloatArray | str,
    # `ValueBuilder` makes an array of each list: validating a million numbers would take seconds
    PlainValidator(_check_embedding),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "number"}, "maxItems": MAX_WIDTH},
                {"type": "string"},
            ]
        }
    ),
]


class ScoreBody(ScoreParameters):
    """Embeddings beside the parameters."""

    embeddings: tuple[Embedding, ...] = Field(
        description=(
            "Image embeddings of this checkpoint: lists of D numbers, or base64 of D little-endian "
            "numbers of dtype."
        )
    )
    dtype: Literal["float32", "float16"] = Field("float32", description="Of the numbers in base64.")


@dataclass(frozen=True, slots=True)
class ScoreCall:
    """A request to score: `image_embeds` (B, D) float32, unit norm, and its options."""

    image_embeds: FloatArray
    options: TagOptions


async def read_score_call(request: Request, limits: Limits) -> ScoreCall:
    """Read a request to score embeddings.

    Raises:
        PayloadTooLarge: More bytes or embeddings than `limits` allow.
        InvalidRequest: The body or a parameter cannot be read.
    """
    bounds = JsonBounds(
        max_items=max(MAX_FILTERS, limits.max_labels_per_request),
        counted={"embeddings": limits.max_embeddings_per_request},
        rows="embeddings",
        max_row_numbers=MAX_WIDTH,
    )
    content = await read_json_object(request, limits, bounds)
    return await off_loop(_parse, content, query_fields(request), limits)


def _parse(content: dict[str, Any], query: dict[str, Any], limits: Limits) -> ScoreCall:
    body = validated(ScoreBody, content | query)
    if not body.embeddings:
        raise InvalidRequest("embeddings is empty; give at least one.")
    rows = [_row(i, value, DTYPES[body.dtype]) for i, value in enumerate(body.embeddings)]
    if len({len(row) for row in rows}) > 1:
        raise InvalidRequest(
            "The embeddings have different lengths. Send embeddings of the served checkpoint only."
        )
    return ScoreCall(stored_embeddings(np.stack(rows)), body.options(limits))


def _row(index: int, value: FloatArray | str, dtype: str) -> FloatArray:
    if not isinstance(value, str):
        return value
    try:
        data = binascii.a2b_base64("".join(value.split()), strict_mode=True)
        row = np.frombuffer(data, dtype)
    except ValueError as error:
        raise InvalidRequest(
            f"Embedding {index} is not base64 of whole numbers of its dtype. Use the standard "
            "alphabet, with padding."
        ) from error
    if len(row) > MAX_WIDTH:
        raise InvalidRequest(
            f"Embedding {index} has more than {MAX_WIDTH:,} numbers. Send embeddings of the served "
            "checkpoint."
        )
    return row.astype(np.float32)
