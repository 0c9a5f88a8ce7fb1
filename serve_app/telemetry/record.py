"""What is noted of one request while it is answered: its id, whose it is, what went wrong, and how
long each stage took.

The HTTP face starts a record for each request and tells it to logs, metrics and the `Server-Timing`
header; whoever works on the request adds to the record without knowing who reads it. No image
content, no key and no URL is ever in it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

STAGES = ("decode", "preprocess", "queue", "encode", "score")
"""Of an image: read its pixels, bring them to the model's size, wait for a thread or a batch, the
encoder's call, the Postprocessor's call. The same names in `Server-Timing`, in the metrics and in
traces."""


@dataclass(slots=True)
class StageTimes:
    """When the stages of one image began and ended, by `time.perf_counter`; a stage may come more
    than once.
    """

    spans: list[tuple[str, float, float]] = field(default_factory=list)

    def add(self, stage: str, started_s: float, ended_s: float) -> None:
        """Note a stage."""
        self.spans.append((stage, started_s, ended_s))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note the stage that the block is, also when it raises."""
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, started_s, time.perf_counter())

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage; time in which it came twice at once is counted once."""
        total: dict[str, float] = {}
        until: dict[str, float] = {}
        for stage, started_s, ended_s in sorted(
            self.spans, key=lambda span: span[1]
        ):  # views of one image go side by side
            counted_s = max(started_s, until.get(stage, started_s))
            total[stage] = total.get(stage, 0.0) + max(0.0, ended_s - counted_s)
            until[stage] = max(ended_s, counted_s)
        return total


@dataclass(slots=True)
class RequestRecord:
    """One request, while it is answered.

    Attributes:
        request_id: Sent by the client, or made here.
        key: Name of the API key that it came with, if keys are asked for.
        client: Who shares with others what the process has: the key's name, or the address that the
            request came from.
        code: Of the error that it was answered with.
        images: Stage times of each image that was worked on.
        unread: Codes of images that could not even be fetched or unpacked.
    """

    request_id: str
    key: str | None = None
    client: str = ""
    code: str | None = None
    images: list[StageTimes] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def longest(self) -> dict[str, float]:
        """Return the seconds of each stage, of the image for which it took longest: images go side
        by side.
        """
        longest: dict[str, float] = {}
        for image in self.images:
            for stage, seconds in image.seconds().items():
                longest[stage] = max(seconds, longest.get(stage, 0.0))
        return {stage: longest[stage] for stage in STAGES if stage in longest}


_current: ContextVar[RequestRecord | None] = ContextVar("siglip_request", default=None)


def begin(record: RequestRecord) -> None:
    """Make a record the current one of this task and of those that it starts."""
    _current.set(record)


def current() -> RequestRecord | None:
    """Return the record of the request that is being answered; None outside of one."""
    return _current.get()


def note_code(code: str) -> None:
    """Note with which error the current request is answered."""
    record = _current.get()
    if record is not None:
        record.code = code


def note_unread(code: str) -> None:
    """Note that an image of the current request could not be fetched or unpacked."""
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
