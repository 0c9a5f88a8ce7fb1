"""`POST /v1/tag` and `POST /v1/score`: a request in, tags out, in one answer or one line for each image as it is done."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from serve_app.api.answers import result_line, score_response, tag_response
from serve_app.api.bodies import TagCall, read_tag_call
from serve_app.api.embeddings import read_score_call
from serve_app.api.sources import ImageSources
from serve_app.config import ServiceConfig
from serve_app.errors import DeadlineExceeded, RequestError, ServiceError, TaggerError
from serve_app.observed import note_unread
from serve_app.tagger import TagAnswer, Tagger

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

    async def tag(request: Request) -> Response:
        """Tag the images of a request."""
        started_s = time.perf_counter()
        call = await read_tag_call(request, sources)
        if NDJSON in request.headers.get("accept", ""):
            deadline_s = asyncio.get_running_loop().time() + config.serving.request_timeout_s
            lines = _lines(_done(tagger, call, deadline_s), call, model, started_s)
            return StreamingResponse(lines, media_type=NDJSON, headers={"cache-control": "no-store"})
        return tag_response(call, await _tag_readable(tagger, call), model, started_s)

    return tag


def score_endpoint(tagger: Tagger, config: ServiceConfig) -> Endpoint:
    """Return the endpoint of `POST /v1/score`."""

    async def score(request: Request) -> Response:
        """Tag stored embeddings."""
        started_s = time.perf_counter()
        call = await read_score_call(request, config.limits)
        return score_response(await tagger.score(call.image_embeds, call.options), config.siglip.model_shown, started_s)

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
    answer = await tagger.tag(readable, call.options, with_embeddings) if readable else TagAnswer(())
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


async def _lines(answers: Answers, call: TagCall, model: str, started_s: float) -> AsyncIterator[bytes]:
    """Give each image's line as soon as it is done, and a last one that says that all were given.

    The answer has begun when an image fails, so each line carries its own error; what is wrong with the request as a whole
    is the same on each. The images that are still under way when the client leaves are dropped.
    """
    failed = 0
    async with aclosing(answers) as done:
        async for at, answer in done:
            failed += isinstance(answer.outcomes[0], TaggerError)
            yield _line({"index": at} | result_line(answer, call, model))
    elapsed_ms = round((time.perf_counter() - started_s) * 1000, 2)
    yield _line({"done": True, "images": len(call.images), "failed": failed, "inference_time_ms": elapsed_ms})


async def _done(tagger: Tagger, call: TagCall, deadline_s: float) -> Answers:
    """Tag each image by itself and give the answers in the order in which they come, all until a time of the event loop."""
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
            return at, TagAnswer((DeadlineExceeded("The service took too long for this image. Try again, or send fewer images."),))
        except TaggerError as error:
            return at, TagAnswer((error,))
        except Exception:
            logger.exception("tagging an image of a stream failed")
            return at, TagAnswer((ServiceError("The service failed on this image. Its log says why."),))

    tasks = [asyncio.create_task(tag_one(at, image)) for at, image in enumerate(call.images)]
    try:
        for task in asyncio.as_completed(tasks):
            yield await task
    finally:
        for pending in tasks:
            pending.cancel()


def _line(entry: dict[str, object]) -> bytes:
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
