"""What OpenAPI says of routes that read their own bodies: three transports, examples, every answer."""

from typing import Any

from serve_app.api.bodies import TagBody, TagParameters

DESCRIPTION = "Tag images with SigLIP. `POST /v1/tag` takes a picture as the body, files of a form, or JSON."

_PARAMETERS: dict[str, Any] = TagParameters.model_json_schema()["properties"]
_JSON: dict[str, Any] = TagBody.model_json_schema()
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM_FILES = {"image": {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "One file or several."}}

TAG_REQUEST: dict[str, Any] = {
    "parameters": [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": schema.get("description", "")}
        for name, schema in _PARAMETERS.items()
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": _BINARY,
            "image/*": _BINARY,
            "multipart/form-data": {"schema": {"type": "object", "properties": _FORM_FILES | _PARAMETERS}},
            "application/json": {
                "schema": _JSON,
                "example": {"image": "data:image/jpeg;base64,/9j/4AAQ…", "labels": ["cat", "dog"], "confidence_threshold": 0.1},
            },
        },
    },
}

_TAG = {
    "type": "object",
    "required": ["label", "confidence"],
    "properties": {
        "label": {"type": "string"},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
        "raw_score": {"type": "number", "description": "The logit, where include_raw_scores is set."},
    },
}
_TAGS = {"type": "array", "items": _TAG}
_ABOUT = {"model": {"type": "string"}, "version": {"type": "string"}, "inference_time_ms": {"type": "number"}}
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
_ONE = {"type": "object", "required": ["tags", *_ABOUT], "properties": {"tags": _TAGS} | _ABOUT}
_RESULT = {"type": "object", "properties": {"tags": _TAGS, **_ERROR["properties"]}}
_MANY = {
    "type": "object",
    "required": ["results", *_ABOUT],
    "properties": {"results": {"type": "array", "items": _RESULT, "description": "In the order sent."}} | _ABOUT,
}


def _refusal(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ERROR}}}


TAG_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "Tags, the best first.", "content": {"application/json": {"schema": {"oneOf": [_ONE, _MANY]}}}},
    400: _refusal("A parameter or the body cannot be read."),
    413: _refusal("Too many bytes or images."),
    415: _refusal("Not a picture in a format that is read."),
    422: _refusal("The picture is damaged or has too many pixels."),
    429: _refusal("Every queue is full; see Retry-After."),
    500: _refusal("The model could not encode the image."),
    503: _refusal("A part of the service is starting; see Retry-After."),
    504: _refusal("No answer within the request's time."),
}
NOT_READY: dict[int | str, dict[str, Any]] = {503: _refusal("The models are not ready yet.")}
