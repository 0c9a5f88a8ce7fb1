"""Counts of images and requests in a Preprocessor, which go to the metrics once a second."""

import asyncio
from collections import Counter
from collections.abc import Sequence

from ray.serve import metrics as serve_metrics

from serve_app.errors import DeadlineExceeded
from serve_app.graph import metrics
from serve_app.pipeline.tagged_image import ImageInput, TaggedImage
from serve_app.siglip.images.formats import signature_of
from serve_app.telemetry.record import AnsweredRequest, StageTimes

OK = "ok"
"""Outcome of an image that was tagged or embedded; any other is an error's code."""
FLUSH_S = 1.0


class Tally:
    """Counts in this process and passes the sums on: one increment a second and not hundreds."""

    def __init__(self, counter: serve_metrics.Counter, *tags: str) -> None:
        self._counter = counter
        self._tags = tags
        self._pending: Counter[tuple[str, ...]] = Counter()

    def add(self, *values: str) -> None:
        """Count one event with these values of the tags; called on the event loop."""
        if not self._pending:
            asyncio.get_running_loop().call_later(FLUSH_S, self._flush)
        self._pending[values] += 1

    def _flush(self) -> None:
        pending = self._pending
        self._pending = Counter()
        for values, count in pending.items():
            self._counter.inc(count, tags=dict(zip(self._tags, values, strict=True)))


class ImageTally:
    """Images by outcome and format, and the time of their stages."""

    def __init__(self) -> None:
        self._images = Tally(metrics.images(), "outcome", "format")
        self._stages = metrics.stage_seconds()

    def note(self, outcome: str, data: bytes, stages: StageTimes | None) -> None:
        """Count an image that is done."""
        self._images.add(outcome, signature_of(data).lower())
        for stage, seconds in stages.seconds().items() if stages else ():
            self._stages.observe(seconds, tags={"stage": stage})

    def note_all(self, images: Sequence[ImageInput], results: Sequence[TaggedImage]) -> None:
        """Count the images of a request, except those that could not be read."""
        for image, result in zip(images, results, strict=True):
            if isinstance(image, bytes):
                outcome = OK if result.error is None else result.error.code
                self.note(outcome, image, result.stages)

    def note_late(self, images: Sequence[ImageInput]) -> None:
        """Count the images of a request that was not answered in time."""
        for image in images:
            if isinstance(image, bytes):
                self.note(DeadlineExceeded.code, image, None)


class RequestTally:
    """Requests by route, method and status, their time, and refusals by code."""

    def __init__(self, images: ImageTally) -> None:
        self._requests = Tally(metrics.requests(), "route", "method", "status")
        self._refusals = Tally(metrics.refusals(), "route", "code")
        self._seconds = metrics.request_seconds()
        self._images = images

    def note(self, answered: AnsweredRequest) -> None:
        """Count a request that has its response."""
        method = (
            answered.method if answered.method in ("GET", "HEAD", "POST", "OPTIONS") else "other"
        )
        self._requests.add(answered.route, method, str(answered.status))
        if answered.code is not None:
            self._refusals.add(answered.route, answered.code)
        for code in answered.unread:
            self._images.note(code, b"", None)
        self._seconds.observe(answered.seconds, tags={"route": answered.route})
