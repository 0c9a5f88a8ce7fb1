"""Every error this package raises on purpose, as one tree.

    TaggerError
    ├── ConfigError                 a setting, a checkpoint folder or a vocabulary that cannot work
    ├── RequestError                the caller can mend it
    │   ├── InvalidRequest          a field is missing, unknown or out of bounds
    │   ├── Unauthorized            no API key, or none that is known
    │   ├── RequestTimeout          the body did not arrive in time
    │   ├── PayloadTooLarge         more bytes, images or labels than allowed
    │   ├── UnsupportedImage        not one of the picture formats that are read here
    │   ├── ImageTooLarge           more pixels than allowed
    │   ├── InvalidImage            truncated, damaged or undecodable
    │   ├── UnknownVocabulary       no vocabulary of that name is loaded
    │   └── SourceUnavailable       an image could not be read from where the request points
    └── ServiceError                the caller did nothing wrong
        ├── Overloaded              every queue is full; try again after a while
        ├── Unavailable             a part of the service is starting or gone
        ├── DeadlineExceeded        no answer within the request's time
        └── InferenceFailed         the model could not encode this input

`code` is stable and meant for programs, `str(error)` is one sentence meant for people; it never
holds a path of the server, an address or a traceback where it may reach a client (`RequestError`,
`ServiceError`). Which HTTP status each has is decided in `api/statuses.py`.
"""


class TaggerError(Exception):
    """Base of every error raised on purpose; `str(error)` is one sentence that says what to do."""

    code = "error"
    status: int | None = None
    """HTTP status that it came with, on errors that `serve_app.client` raises."""
    request_id: str | None = None
    """`X-Request-Id` of the request that it answers, on errors that `serve_app.client` raises."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigError(TaggerError):
    """A setting, a checkpoint folder or a vocabulary that cannot work; says which file or key, and
    why.
    """

    code = "invalid_config"


class RequestError(TaggerError):
    """The request cannot be answered as it is, and the caller can mend it."""

    code = "bad_request"


class InvalidRequest(RequestError):
    """A field is missing, unknown or out of bounds."""

    code = "invalid_request"


class Unauthorized(RequestError):
    """No API key came with the request, or none that is known."""

    code = "unauthorized"


class RequestTimeout(RequestError):
    """The body did not arrive within the time that it has."""

    code = "request_timeout"


class PayloadTooLarge(RequestError):
    """More bytes, images or labels than one request may carry."""

    code = "payload_too_large"


class UnsupportedImage(RequestError):
    """The bytes are not a picture in one of the formats that are read here."""

    code = "unsupported_image"


class ImageTooLarge(RequestError):
    """The picture has more pixels than are decoded here."""

    code = "image_too_large"


class InvalidImage(RequestError):
    """The picture is truncated, damaged or cannot be decoded."""

    code = "invalid_image"


class UnknownVocabulary(RequestError):
    """No vocabulary of that name is loaded."""

    code = "unknown_vocabulary"


class SourceUnavailable(RequestError):
    """The image could not be read from where the request points."""

    code = "source_unavailable"


class ServiceError(TaggerError):
    """The service could not answer; the same request may succeed later."""

    code = "service_error"


class Overloaded(ServiceError):
    """Every queue is full."""

    code = "overloaded"


class Unavailable(ServiceError):
    """A part of the service is starting, or gone and not yet replaced."""

    code = "unavailable"


class DeadlineExceeded(ServiceError):
    """No answer within the time that the request had."""

    code = "deadline_exceeded"


class InferenceFailed(ServiceError):
    """The model could not encode this input."""

    code = "inference_failed"
