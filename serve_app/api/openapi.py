"""What OpenAPI says of routes that read their own bodies: three transports, examples, every
answer.
"""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from serve_app.api.bodies import TagBody
from serve_app.api.embeddings import ScoreBody
from serve_app.api.parameters import TagParameters

EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgAQMAAABJtOi3AAAABlBMVEWAgIDiKCgl5qkgAAAARElEQVR42n3NsRGAIBTA0Me3cAzZRDZzNUZhBAfwwIKz"
    "xBS5dOGf/cbxCDmEkmyqFIkSEEGetVSnzRpUroGzC61/jwUvM1QM6BMEposAAAAASUVORK5CYII="
)
"""A red circle of 32 pixels, so that examples can be sent as they stand."""
DESCRIPTION = (
    "Tag images with SigLIP. `POST /v1/tag` takes a picture as the body, files of a form, or JSON."
)

_ABOUT_A_FIELD = ("title", "description", "default")
"""Keywords of a field's schema that are not about its value."""


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a JSON body, in which every optional field may be null, as `validated`
    reads it.
    """
    schema = model.model_json_schema()
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
    """Return the query parameters that stand for the fields of a model."""
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": schema,
            "description": schema.get("description", ""),
        }
        for name, schema in model.model_json_schema()["properties"].items()
    ]


_PARAMETERS: dict[str, Any] = TagParameters.model_json_schema()["properties"]
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
        "confidence": {"type": "number", "description": "0 to 1; any number where score is logit."},
        "raw_score": {
            "type": "number",
            "description": "The logit, where include_raw_scores is set.",
        },
    },
}
_TAGS = {"type": "array", "items": _TAG}
_BY = {
    "vocabulary": {
        "type": "string",
        "nullable": True,
        "description": "Its name; null for labels of the request.",
    },
    "vocabulary_fingerprint": {
        "type": "string",
        "description": "Changes with the checkpoint, the labels and how they are said.",
    },
    "score": {"type": "string", "description": "What confidence is."},
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
        "description": "With quality high: quality, and views, how many images were encoded.",
    },
    "embedding": {
        "description": "With return=embedding: D numbers of unit norm, or base64 of little-endian float32."
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
        "description": "Tags, the best first; as lines, each when its image is done, where Accept is application/x-ndjson.",
        "content": {
            "application/json": {"schema": {"oneOf": [_ONE, _MANY]}},
            "application/x-ndjson": {"schema": {"type": "string"}},
        },
    },
    400: _refusal("A parameter or the body cannot be read."),
    404: _refusal("There is no vocabulary of that name."),
    413: _refusal("The request has too many bytes or images, or its response would be too large."),
    415: _refusal("Not a picture in a format that is read."),
    422: _refusal("The picture is damaged or has too many pixels."),
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


def describe_edge(app: FastAPI, asks_for_keys: bool) -> None:
    """Have the document say what every request passes before any route: keys, and the time that a
    body has.
    """
    plain = app.openapi

    def described() -> dict[str, Any]:
        """Return the document, made once."""
        if app.openapi_schema is None:
            document = plain()
            for operation in (
                operation for path in document["paths"].values() for operation in path.values()
            ):
                if "requestBody" in operation:
                    operation["responses"].setdefault(
                        "408", {"description": "The body did not arrive in time."}
                    )
                if asks_for_keys:
                    operation["responses"].setdefault(
                        "401", {"description": "No API key, or none that is known."}
                    )
            if asks_for_keys:
                document.setdefault("components", {})["securitySchemes"] = {
                    "key": {"type": "http", "scheme": "bearer"}
                }
                document["security"] = [{"key": []}]
        assert app.openapi_schema is not None, "FastAPI keeps what it made"
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]
