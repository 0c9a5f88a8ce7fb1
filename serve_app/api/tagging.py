"""`POST /v1/tag` and `POST /v1/score`: a request in, tags out.

The response is one object, or a stream with one line for each image as it is done.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from serve_app.api.answers import count_values, result_line, score_response, tag_response
from serve_app.api.bodies import TagCall, read_tag_call
from serve_app.api.embeddings import read_score_call
from serve_app.api.json_responses import INLINE_VALUES, write_json
from serve_app.api.sources import ImageSources
from serve_app.api.threads import off_loop
from serve_app.config.service import ServiceConfig
from serve_app.errors import (
    DeadlineExceeded,
    PayloadTooLarge,
    RequestError,
    ServiceError,
    TaggerError,
)
from serve_app.pipeline.tagged_image import TaggedImage
from serve_app.pipeline.tagger import Tagger
from serve_app.telemetry.record import note_unread

logger = logging.getLogger(__name__)

Results = AsyncGenerator[tuple[int, TaggedImage], None]
"""Indices and results of images, as they come."""
Endpoint = Callable[[Request], Awaitable[Response]]
NDJSON = "application/x-ndjson"
MAX_STREAMED_AT_ONCE = 16
"""Images of one streamed request that are tagged at the same time."""
LATE_IMAGE = "The service took too long for this image. Retry, or send fewer images."


def tag_endpoint(tagger: Tagger, config: ServiceConfig, sources: ImageSources) -> Endpoint:
    """Return the endpoint of `POST /v1/tag`."""
    model = config.siglip.model_shown
    max_bytes = config.limits.max_response_bytes

    async def tag(request: Request) -> Response:
        """Tag the images of a request."""
        started_s = time.perf_counter()
        call = await read_tag_call(request, sources)
        for image in call.images:
            if isinstance(image, RequestError):
                note_unread(image.code)
        if NDJSON in request.headers.get("accept", ""):
            deadline_s = asyncio.get_running_loop().time() + config.serving.request_timeout_s
            results = _as_done(tagger, call, deadline_s)
            lines = _lines(results, call, model, started_s, max_bytes)
            return StreamingResponse(
                lines, media_type=NDJSON, headers={"cache-control": "no-store"}
            )
        images = await tagger.tag(call.images, call.options)
        return await tag_response(call, images, model, started_s, max_bytes)

    return tag


def score_endpoint(tagger: Tagger, config: ServiceConfig) -> Endpoint:
    """Return the endpoint of `POST /v1/score`."""
    model = config.siglip.model_shown

    async def score(request: Request) -> Response:
        """Tag stored embeddings."""
        started_s = time.perf_counter()
        call = await read_score_call(request, config.limits)
        images = await tagger.score(call.image_embeds, call.options)
        return await score_response(images, model, started_s, config.limits.max_response_bytes)

    return score


async def _lines(
    results: Results, call: TagCall, model: str, started_s: float, max_bytes: int
) -> AsyncIterator[bytes]:
    """Yield each image's line as soon as it is done, and a last line that says that all are done.

    The response has begun when an image fails, so each line has its own error. An error of the
    request as a whole is repeated on each line. Images that are still being tagged when the client
    leaves are dropped.
    """
    failed = 0
    async with aclosing(results) as done:
        async for index, image in done:
            line, is_error = await _image_line(index, image, call, model, max_bytes)
            failed += is_error
            for chunk in line:
                yield chunk
    elapsed_ms = round((time.perf_counter() - started_s) * 1000, 2)
    last = {"done": True, "images": len(call.images), "failed": failed}
    for chunk in _line(last | {"inference_time_ms": elapsed_ms}):
        yield chunk


async def _image_line(
    index: int, image: TaggedImage, call: TagCall, model: str, max_bytes: int
) -> tuple[deque[bytes], bool]:
    """Return one image's line in chunks, and whether it is an error.

    A large line is written off the event loop. One of more than `max_bytes` becomes an error.
    """

    def line() -> deque[bytes]:
        return _line({"index": index} | result_line(image, call, model), max_bytes)

    try:
        if count_values(image, call) <= INLINE_VALUES:
            return line(), image.error is not None
        return await off_loop(line), image.error is not None
    except PayloadTooLarge as error:
        failed = TaggedImage(error=error)
        return _line({"index": index} | result_line(failed, call, model)), True


def _line(entry: dict[str, object], max_bytes: int | None = None) -> deque[bytes]:
    """Return a line in chunks; raises `PayloadTooLarge`."""
    chunks = write_json(entry, max_bytes)
    chunks[-1] += b"\n"
    return chunks


async def _as_done(tagger: Tagger, call: TagCall, deadline_s: float) -> Results:
    """Tag each image by itself, all before the deadline, and yield the results as they come."""
    turns = asyncio.Semaphore(MAX_STREAMED_AT_ONCE)

    async def tag_one(index: int, image: bytes | RequestError) -> tuple[int, TaggedImage]:
        return index, await _tag_alone(tagger, image, call, deadline_s, turns)

    tasks = [asyncio.create_task(tag_one(i, image)) for i, image in enumerate(call.images)]
    try:
        for task in asyncio.as_completed(tasks):
            yield await task
    finally:
        for pending in tasks:
            pending.cancel()


async def _tag_alone(
    tagger: Tagger,
    image: bytes | RequestError,
    call: TagCall,
    deadline_s: float,
    turns: asyncio.Semaphore,
) -> TaggedImage:
    """Tag one image of a stream; whatever goes wrong is its result."""
    try:
        async with asyncio.timeout_at(deadline_s), turns:
            (tagged,) = await tagger.tag([image], call.options)
            return tagged
    except TimeoutError:
        return TaggedImage(error=DeadlineExceeded(LATE_IMAGE))
    except TaggerError as error:
        return TaggedImage(error=error)
    except Exception:
        logger.exception("tagging an image of a stream failed")
        return TaggedImage(
            error=ServiceError("The service failed on this image. Its log says why.")
        )
