"""Every error this package raises on purpose, as one tree.

    TaggerError
    ├── ConfigError                 a setting, checkpoint folder or vocabulary is not usable
    ├── RequestError                the client can fix the request
    │   ├── InvalidRequest          a field is missing, unknown or out of bounds
    │   ├── Unauthorized            the API key is missing or unknown
    │   ├── RequestTimeout          the body did not arrive in time
    │   ├── PayloadTooLarge         more bytes, images or labels than allowed
    │   ├── UnsupportedImage        not one of the supported image formats
    │   ├── ImageTooLarge           more pixels than allowed
    │   ├── InvalidImage            truncated, damaged or undecodable
    │   ├── UnknownVocabulary       no vocabulary of that name is loaded
    │   └── SourceUnavailable       the image could not be read from its source
    └── ServiceError                the request is fine; retry it later
        ├── Overloaded              every queue is full
        ├── Unavailable             a part of the service is starting or being replaced
        ├── DeadlineExceeded        no response within the request's deadline
        └── InferenceFailed         the model could not encode this input

`code` is stable and meant for programs. `str(error)` is one sentence meant for people. Clients see
the messages of `RequestError` and `ServiceError`, so these never contain a server path, an internal
address or a traceback. `api/statuses.py` maps every class to its HTTP status.
"""


class TaggerError(Exception):
    """Base class of all errors of this package; the message says what to do."""

    code = "error"
    status: int | None = None
    """HTTP status of the response; set on errors that `serve_app.client` raises."""
    request_id: str | None = None
    """`X-Request-Id` of the request; set on errors that `serve_app.client` raises."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigError(TaggerError):
    """A setting, checkpoint folder or vocabulary is not usable; the message names file or key."""

    code = "invalid_config"


class RequestError(TaggerError):
    """The request is wrong, and the client can fix it."""

    code = "bad_request"


class InvalidRequest(RequestError):
    """A field is missing, unknown or out of bounds."""

    code = "invalid_request"


class Unauthorized(RequestError):
    """The request has no API key, or an unknown one."""

    code = "unauthorized"


class RequestTimeout(RequestError):
    """The request body did not arrive in time."""

    code = "request_timeout"


class PayloadTooLarge(RequestError):
    """The request has more bytes, images or labels than allowed."""

    code = "payload_too_large"


class UnsupportedImage(RequestError):
    """The bytes are not an image in one of the supported formats."""

    code = "unsupported_image"


class ImageTooLarge(RequestError):
    """The image has more pixels than allowed, or would be too expensive to decode."""

    code = "image_too_large"


class InvalidImage(RequestError):
    """The image is truncated, damaged or undecodable."""

    code = "invalid_image"


class UnknownVocabulary(RequestError):
    """No vocabulary of that name is loaded."""

    code = "unknown_vocabulary"


class SourceUnavailable(RequestError):
    """The image could not be read from the source that the request names."""

    code = "source_unavailable"


class ServiceError(TaggerError):
    """The service could not respond; the same request may succeed later."""

    code = "service_error"


class Overloaded(ServiceError):
    """Every queue is full.

    Attributes:
        retry_after_s: Seconds after which there is likely to be room; None if that is unknown.
    """

    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(ServiceError):
    """A part of the service is starting, or was lost and is not replaced yet."""

    code = "unavailable"


class DeadlineExceeded(ServiceError):
    """The service did not respond within the request's deadline."""

    code = "deadline_exceeded"


class InferenceFailed(ServiceError):
    """The model could not encode this input."""

    code = "inference_failed"
