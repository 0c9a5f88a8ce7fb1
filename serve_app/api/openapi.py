"""OpenAPI descriptions of requests and responses: schemas, examples, and every status.

Not here: how the document is built (`document.py`).
"""

from typing import Any

from pydantic import BaseModel

from serve_app.api.bodies import TagBody
from serve_app.api.embeddings import ScoreBody
from serve_app.api.parameters import TagParameters

EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgAQMAAABJtOi3AAAABlBMVEWAgIDiKCgl5qkgAAAARElEQVR4"
    "2n3NsRGAIBTA0Me3cAzZRDZzNUZhBAfwwIKzxBS5dOGf/cbxCDmEkmyqFIkSEEGetVSnzRpUroGzC61/"
    "jwUvM1QM6BMEposAAAAASUVORK5CYII="
)
"""A red circle of 32 × 32 pixels, so that examples can be sent unchanged."""

_ABOUT_A_FIELD = ("title", "description", "default")
"""Keywords of a field's schema that do not constrain its value."""


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return pydantic's schema without defaults of null, which OpenAPI 3.0 does not allow."""
    schema = model.model_json_schema()
    for field in schema["properties"].values():
        if field.get("default", ...) is None:
            del field["default"]
    return schema


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a JSON body.

    Every optional field may be null, which `validated` treats as absent.
    """
    schema = _schema(model)
    required = schema.get("required", ())
    for name, value in schema["properties"].items():
        kinds = value.get("anyOf", ())
        if (
            name in required
            or not (value.keys() - set(_ABOUT_A_FIELD))
            or {"type": "null"} in kinds
        ):
            continue
        about = {key: value.pop(key) for key in _ABOUT_A_FIELD if key in value}
        schema["properties"][name] = {"anyOf": [*(kinds or (value,)), {"type": "null"}]} | about
    return schema


def query_parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    """Return the query parameters for the fields of a model."""
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": schema,
            "description": schema.get("description", ""),
        }
        for name, schema in _schema(model)["properties"].items()
    ]


_PARAMETERS: dict[str, Any] = _schema(TagParameters)["properties"]
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM_FILES = {
    "image": {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "description": "One file or several.",
    }
}

TAG_REQUEST: dict[str, Any] = {
    "parameters": query_parameters(TagParameters),
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": _BINARY,
            "image/*": _BINARY,
            "multipart/form-data": {
                "schema": {"type": "object", "properties": _FORM_FILES | _PARAMETERS}
            },
            "application/json": {
                "schema": body_schema(TagBody),
                "example": {
                    "image": EXAMPLE_IMAGE,
                    "labels": ["red circle", "blue star"],
                    "confidence_threshold": 0.1,
                },
            },
        },
    },
}

_TAG = {
    "type": "object",
    "required": ["label", "confidence"],
    "properties": {
        "label": {"type": "string"},
        "confidence": {"type": "number", "description": "0 to 1; any number if score is logit."},
        "raw_score": {
            "type": "number",
            "description": "The logit, if include_raw_scores is set.",
        },
    },
}
_TAGS = {"type": "array", "items": _TAG}
_BY = {
    "vocabulary": {
        "type": "string",
        "nullable": True,
        "description": "Its name; null if the request sent its own labels.",
    },
    "vocabulary_fingerprint": {
        "type": "string",
        "description": "Changes with the checkpoint, the labels and their prompts.",
    },
    "score": {"type": "string", "description": "What confidence means."},
}
_ABOUT = {
    "model": {"type": "string"},
    "version": {"type": "string"},
    "inference_time_ms": {"type": "number"},
}
_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}
_EXTRAS = {
    "metadata": {
        "type": "object",
        "description": "With quality high: quality, and views, the number of encoded views.",
    },
    "embedding": {
        "description": (
            "With return=embedding: D numbers of unit norm, or base64 of little-endian float32."
        )
    },
}
_ONE = {
    "type": "object",
    "required": ["tags", *_ABOUT],
    "properties": {"tags": _TAGS} | _EXTRAS | _BY | _ABOUT,
}
_RESULT = {"type": "object", "properties": {"tags": _TAGS, **_EXTRAS, **_ERROR["properties"]}}
_MANY = {
    "type": "object",
    "required": ["results", *_ABOUT],
    "properties": {
        "results": {"type": "array", "items": _RESULT, "description": "In the order sent."}
    }
    | _BY
    | _ABOUT,
}


def _refusal(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ERROR}}}


TAG_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": (
            "Tags, the best first. With Accept: application/x-ndjson, one line for each image as "
            "soon as it is done."
        ),
        "content": {
            "application/json": {"schema": {"oneOf": [_ONE, _MANY]}},
            "application/x-ndjson": {"schema": {"type": "string"}},
        },
    },
    400: _refusal("A parameter or the body cannot be read."),
    404: _refusal("There is no vocabulary of that name."),
    413: _refusal("The request has too many bytes or images, or its response would be too large."),
    415: _refusal("Not an image, or in a format that is not supported."),
    422: _refusal("The image is damaged or has too many pixels."),
    429: _refusal("Every queue is full; see Retry-After."),
    500: _refusal("The model could not encode the image."),
    503: _refusal("A part of the service is starting; see Retry-After."),
    504: _refusal("No answer within the request's time."),
}
UNKNOWN_VOCABULARY: dict[int | str, dict[str, Any]] = {
    404: _refusal("There is no vocabulary of that name.")
}
NOT_READY: dict[int | str, dict[str, Any]] = {503: _refusal("The models are not ready yet.")}

SCORE_REQUEST: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": body_schema(ScoreBody),
                "example": {
                    "embeddings": ["<base64 of D float16>"],
                    "dtype": "float16",
                    "confidence_threshold": 0.1,
                },
            }
        },
    }
}
SCORE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Tags of each embedding.",
        "content": {"application/json": {"schema": _MANY}},
    },
    **{status: TAG_RESPONSES[status] for status in (400, 404, 413, 429, 503, 504)},
}
