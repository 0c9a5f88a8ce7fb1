"""Counts images and requests in a Preprocessor, and adds them to the metrics once a second."""

import asyncio
from collections import Counter
from collections.abc import Sequence

from ray.serve import metrics as serve_metrics

from serve_app.errors import DeadlineExceeded
from serve_app.graph import metrics
from serve_app.images.formats import signature_of
from serve_app.pipeline.tagged_image import ImageInput, TaggedImage
from serve_app.telemetry.record import FinishedRequest, StageTimes

OK = "ok"
"""Outcome of an image that was tagged or embedded; other outcomes are error codes."""
FLUSH_S = 1.0


class Tally:
    """Sums events, so that a metric is incremented once a second instead of hundreds of times."""

    def __init__(self, counter: serve_metrics.Counter, *tags: str) -> None:
        self._counter = counter
        self._tags = tags
        self._pending: Counter[tuple[str, ...]] = Counter()

    def add(self, *values: str) -> None:
        """Count one event with these tag values; call this on the event loop."""
        if not self._pending:
            asyncio.get_running_loop().call_later(FLUSH_S, self._flush)
        self._pending[values] += 1

    def _flush(self) -> None:
        pending = self._pending
        self._pending = Counter()
        for values, count in pending.items():
            self._counter.inc(count, tags=dict(zip(self._tags, values, strict=True)))


class ImageTally:
    """Counts images by outcome and format, and records the duration of their stages."""

    def __init__(self) -> None:
        self._images = Tally(metrics.images(), "outcome", "format")
        self._stages = metrics.stage_seconds()

    def note(self, outcome: str, data: bytes, stages: StageTimes | None) -> None:
        """Count a finished image."""
        self._images.add(outcome, signature_of(data).lower())
        for stage, seconds in stages.seconds().items() if stages else ():
            self._stages.observe(seconds, tags={"stage": stage})

    def note_all(self, images: Sequence[ImageInput], results: Sequence[TaggedImage]) -> None:
        """Count the images of a request, except those that could not be read."""
        for image, result in zip(images, results, strict=True):
            if isinstance(image, bytes):
                outcome = OK if result.error is None else result.error.code
                self.note(outcome, image, result.stages)

    def note_timed_out(self, images: Sequence[ImageInput]) -> None:
        """Count the images of a request that timed out."""
        for image in images:
            if isinstance(image, bytes):
                self.note(DeadlineExceeded.code, image, None)


class RequestTally:
    """Counts requests by route, method and status, and error responses by code."""

    def __init__(self, images: ImageTally) -> None:
        self._requests = Tally(metrics.requests(), "route", "method", "status")
        self._refusals = Tally(metrics.refusals(), "route", "code")
        self._seconds = metrics.request_seconds()
        self._images = images

    def note(self, request: FinishedRequest) -> None:
        """Count a finished request and record its duration."""
        method = request.method if request.method in ("GET", "HEAD", "POST", "OPTIONS") else "other"
        self._requests.add(request.route, method, str(request.status))
        if request.code is not None:
            self._refusals.add(request.route, request.code)
        for code in request.unread:
            self._images.note(code, b"", None)
        self._seconds.observe(request.seconds, tags={"route": request.route})
