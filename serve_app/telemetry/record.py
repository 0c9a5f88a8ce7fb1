"""The record of one request: its id, its client, its error, and the duration of each stage.

The HTTP API begins a record for each request, and code that processes the request adds to it. Logs,
metrics and the `Server-Timing` header are derived from the record. A record never contains image
content, API keys or URLs.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

STAGES = ("decode", "preprocess", "queue", "encode", "score")
"""The stages of an image: decode its pixels, resize them for the model, wait for a thread or a
batch, call the encoder, call the Postprocessor. `Server-Timing`, metrics and traces use these
names."""


@dataclass(slots=True)
class StageTimes:
    """Start and end times of the stages of one image, by `time.perf_counter`.

    A stage may occur more than once.
    """

    spans: list[tuple[str, float, float]] = field(default_factory=list)

    def add(self, stage: str, started_s: float, ended_s: float) -> None:
        """Record a stage."""
        self.spans.append((stage, started_s, ended_s))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Record the block as a stage, even if it raises."""
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, started_s, time.perf_counter())

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage; overlapping spans of a stage are counted once."""
        total: dict[str, float] = {}
        until: dict[str, float] = {}
        # the views of one image are encoded concurrently, so their spans overlap
        for stage, started_s, ended_s in sorted(self.spans, key=lambda span: span[1]):
            counted_s = max(started_s, until.get(stage, started_s))
            total[stage] = total.get(stage, 0.0) + max(0.0, ended_s - counted_s)
            until[stage] = max(ended_s, counted_s)
        return total


@dataclass(slots=True)
class RequestRecord:
    """The record of one request in progress.

    Attributes:
        request_id: The id that the client sent, or a generated one.
        key: Name of the API key, if keys are required.
        client: The client that budgets are shared by: the name of its key, or else its address.
        code: Error code of the response; None without an error.
        images: Stage times of each image that was processed.
        unread: Codes of the images that could not be fetched or unpacked.
        started_s: Start time of the request, by `time.perf_counter`.
    """

    request_id: str
    key: str | None = None
    client: str = ""
    code: str | None = None
    images: list[StageTimes] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    started_s: float = field(default_factory=time.perf_counter)

    def longest(self) -> dict[str, float]:
        """Return the seconds of each stage for the image in which it took longest.

        Images are processed concurrently, so a sum would exceed the duration of the request.
        """
        longest: dict[str, float] = {}
        for image in self.images:
            for stage, seconds in image.seconds().items():
                longest[stage] = max(seconds, longest.get(stage, 0.0))
        return {stage: longest[stage] for stage in STAGES if stage in longest}


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """A finished request, as observers receive it.

    Attributes:
        request_id: The id that the client sent, or a generated one.
        key: Name of the API key, if keys are required.
        method: GET, POST, …
        route: The path as documented, such as `/v1/vocabularies/{name}`; `other` for a path without
            a route.
        status: Status of the response; 499 if the client disconnected or Serve cancelled the
            request, 500 if the response was interrupted.
        code: Error code of the response; None without an error.
        seconds: Time from the head of the request to the end of the response.
        bytes_in: Size of the request body.
        images: Number of images in the request.
        stages: Seconds of each stage, for the image in which it took longest.
        unread: Codes of the images that could not be fetched or unpacked.
    """

    request_id: str
    key: str | None
    method: str
    route: str
    status: int
    code: str | None
    seconds: float
    bytes_in: int
    images: int
    stages: dict[str, float]
    unread: tuple[str, ...] = ()


Observer = Callable[[FinishedRequest], None]
"""Callback for every finished request: logs, metrics or traces."""

_current: ContextVar[RequestRecord | None] = ContextVar("siglip_request", default=None)


def begin(record: RequestRecord) -> None:
    """Set the current record in this task and in the tasks that it starts."""
    _current.set(record)


def current() -> RequestRecord | None:
    """Return the record of the current request; None outside of a request."""
    return _current.get()


def note_code(code: str) -> None:
    """Record the error code of the current request's response."""
    record = _current.get()
    if record is not None:
        record.code = code


def note_unread(code: str) -> None:
    """Record that an image of the current request could not be fetched or unpacked."""
    record = _current.get()
    if record is not None:
        record.unread.append(code)


def new_image() -> StageTimes:
    """Return stage times for one more image of the current request."""
    times = StageTimes()
    record = _current.get()
    if record is not None:
        record.images.append(times)
    return times
