"""`POST /v1/tag` and `POST /v1/score`: a request in, tags out, in one answer or one line for each
image as it is done.
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
from serve_app.pipeline.tagger import TagAnswer, Tagger
from serve_app.telemetry.record import note_unread

logger = logging.getLogger(__name__)

Answers = AsyncGenerator[tuple[int, TagAnswer], None]
"""Images' places and answers, as they come."""
Endpoint = Callable[[Request], Awaitable[Response]]
NDJSON = "application/x-ndjson"
MAX_STREAMED_AT_ONCE = 16
"""Images of one streamed request that are worked on at the same time."""


def tag_endpoint(tagger: Tagger, config: ServiceConfig, sources: ImageSources) -> Endpoint:
    """Return the endpoint of `POST /v1/tag`."""
    model = config.siglip.model_shown
    max_bytes = config.limits.max_response_bytes

    async def tag(request: Request) -> Response:
        """Tag the images of a request."""
        started_s = time.perf_counter()
        call = await read_tag_call(request, sources)
        if NDJSON in request.headers.get("accept", ""):
            deadline_s = asyncio.get_running_loop().time() + config.serving.request_timeout_s
            answers = _done(tagger, call, deadline_s)
            lines = _lines(answers, call, model, started_s, max_bytes)
            return StreamingResponse(
                lines, media_type=NDJSON, headers={"cache-control": "no-store"}
            )
        answer = await _tag_readable(tagger, call)
        return await tag_response(call, answer, model, started_s, max_bytes)

    return tag


def score_endpoint(tagger: Tagger, config: ServiceConfig) -> Endpoint:
    """Return the endpoint of `POST /v1/score`."""
    model = config.siglip.model_shown

    async def score(request: Request) -> Response:
        """Tag stored embeddings."""
        started_s = time.perf_counter()
        call = await read_score_call(request, config.limits)
        answer = await tagger.score(call.image_embeds, call.options)
        return await score_response(answer, model, started_s, config.limits.max_response_bytes)

    return score


async def _tag_readable(tagger: Tagger, call: TagCall) -> TagAnswer:
    """Tag the images that could be unpacked and put the others' errors back in their places."""
    readable = [image for image in call.images if not isinstance(image, RequestError)]
    for image in call.images:
        if isinstance(image, RequestError):
            note_unread(image.code)
    with_embeddings = call.parameters.returned == "embedding"
    if len(readable) == len(call.images):
        return await tagger.tag(readable, call.options, with_embeddings)
    answer = (
        await tagger.tag(readable, call.options, with_embeddings) if readable else TagAnswer(())
    )
    at = iter(range(len(readable)))
    places = [None if isinstance(image, RequestError) else next(at) for image in call.images]
    tagged = iter(answer.outcomes)
    outcomes = [image if isinstance(image, RequestError) else next(tagged) for image in call.images]
    embeds = answer.image_embeds
    return TagAnswer(
        tuple(outcomes),
        answer.scored,
        None if embeds is None else tuple(None if at is None else embeds[at] for at in places),
        tuple(0 if at is None else answer.views[at] for at in places),
    )


async def _lines(
    answers: Answers, call: TagCall, model: str, started_s: float, max_bytes: int
) -> AsyncIterator[bytes]:
    """Give each image's line as soon as it is done, and a last one that says that all were given.

    The response has begun when an image fails, so each line carries its own error; an error of the
    request as a whole is repeated on each. Images that are still being tagged when the client
    leaves are dropped.
    """
    failed = 0
    async with aclosing(answers) as done:
        async for index, answer in done:
            line, is_error = await _image_line(index, answer, call, model, max_bytes)
            failed += is_error
            for chunk in line:
                yield chunk
    elapsed_ms = round((time.perf_counter() - started_s) * 1000, 2)
    last = {"done": True, "images": len(call.images), "failed": failed}
    for chunk in _line(last | {"inference_time_ms": elapsed_ms}):
        yield chunk


async def _image_line(
    index: int, answer: TagAnswer, call: TagCall, model: str, max_bytes: int
) -> tuple[deque[bytes], bool]:
    """Return one image's line in chunks, and whether it is an error; a large one is written off
    the event loop, and one of more than `max_bytes` becomes an error.
    """
    try:
        if count_values(answer, call.parameters.encoding_format) <= INLINE_VALUES:
            line = _line({"index": index} | result_line(answer, call, model), max_bytes)
        else:
            line = await off_loop(
                lambda: _line({"index": index} | result_line(answer, call, model), max_bytes)
            )
    except PayloadTooLarge as error:
        failed = TagAnswer((error,))
        return _line({"index": index} | result_line(failed, call, model)), True
    return line, isinstance(answer.outcomes[0], TaggerError)


def _line(entry: dict[str, object], max_bytes: int | None = None) -> deque[bytes]:
    """Return a line in chunks; raises `PayloadTooLarge`."""
    chunks = write_json(entry, max_bytes)
    chunks[-1] += b"\n"
    return chunks


async def _done(tagger: Tagger, call: TagCall, deadline_s: float) -> Answers:
    """Tag each image by itself and give the answers in the order in which they come, all until a
    time of the event loop.
    """
    turns = asyncio.Semaphore(MAX_STREAMED_AT_ONCE)
    with_embeddings = call.parameters.returned == "embedding"

    async def tag_one(at: int, image: bytes | RequestError) -> tuple[int, TagAnswer]:
        """Tag one image, whatever goes wrong."""
        try:
            if isinstance(image, RequestError):
                note_unread(image.code)
                raise image
            async with asyncio.timeout_at(deadline_s), turns:
                return at, await tagger.tag([image], call.options, with_embeddings)
        except TimeoutError:
            return at, TagAnswer(
                (
                    DeadlineExceeded(
                        "The service took too long for this image. Retry, or send fewer images."
                    ),
                )
            )
        except TaggerError as error:
            return at, TagAnswer((error,))
        except Exception:
            logger.exception("tagging an image of a stream failed")
            return at, TagAnswer(
                (ServiceError("The service failed on this image. Its log says why."),)
            )

    tasks = [asyncio.create_task(tag_one(at, image)) for at, image in enumerate(call.images)]
    try:
        for task in asyncio.as_completed(tasks):
            yield await task
    finally:
        for pending in tasks:
            pending.cancel()
