"""`AsyncClient`: the calls, driven by asyncio."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import httpx

from serve_app.client.answers import ModelCard, Tagged, Vocabulary, VocabularyCard
from serve_app.client.calls import Outcome
from serve_app.client.exchange import DEADLINE_S, Call, Read, Wait
from serve_app.client.face import CONCURRENCY, IMAGES_PER_REQUEST, LIMITS, Face, Settings
from serve_app.client.folders import Paths, TaggedFile, Window, files_of
from serve_app.client.images import Image, read_image
from serve_app.client.options import Fields, Options, ScoreOptions, fields_of
from serve_app.errors import TaggerError
from serve_app.untrusted.bounded_http import MAX_RESPONSE_BYTES, ResponseTooSlow, aread_response

T = TypeVar("T")


class AsyncClient(Face):
    """The same for asyncio: every method as in `Client`, to be awaited.

    `aclose` it, or use it in an `async with`.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(base_url, api_key, settings)
        self._http = httpx.AsyncClient(transport=transport, limits=LIMITS)
        self._wait = wait

    async def tag(
        self, image: Image, *, return_embedding: bool = False, **options: Unpack[Options]
    ) -> Tagged:
        """Tag one picture; see `Client.tag`."""
        return await self._run(self._calls.tag(image, fields_of(options), return_embedding))

    async def tag_many(
        self,
        images: Iterable[Image],
        *,
        images_per_request: int = IMAGES_PER_REQUEST,
        return_embedding: bool = False,
        **options: Unpack[Options],
    ) -> list[Outcome]:
        """Tag pictures in requests of several; see `Client.tag_many`."""
        return await self._run(
            self._calls.tag_many(images, fields_of(options), images_per_request, return_embedding)
        )

    async def score(
        self, embeddings: Sequence[Sequence[float] | str], **options: Unpack[ScoreOptions]
    ) -> list[Outcome]:
        """Tag stored image embeddings; see `Client.score`."""
        return await self._run(self._calls.score(embeddings, fields_of(options)))

    async def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Embed texts; see `Client.embed`."""
        return await self._run(self._calls.embed(texts))

    async def vocabularies(self) -> tuple[VocabularyCard, ...]:
        """Return what vocabularies there are; see `Client.vocabularies`."""
        return await self._run(self._calls.vocabularies())

    async def vocabulary(self, name: str) -> Vocabulary:
        """Return a vocabulary with its tags; see `Client.vocabulary`."""
        return await self._run(self._calls.vocabulary(name))

    async def model(self) -> ModelCard:
        """Return what is served; see `Client.model`."""
        return await self._run(self._calls.model())

    async def ready(self) -> bool:
        """Return whether the models are loaded; see `Client.ready`."""
        return await self._run(self._calls.ready())

    def tag_files(
        self,
        paths: Paths,
        *,
        concurrency: int = CONCURRENCY,
        in_order: bool = False,
        return_embedding: bool = False,
        **options: Unpack[Options],
    ) -> AsyncGenerator[TaggedFile, None]:
        """Tag files a few at a time, for `async for`; see `Client.tag_files`."""
        return self._tag_files(
            files_of(paths), concurrency, in_order, (fields_of(options), return_embedding)
        )

    async def _tag_files(
        self, files: Iterator[Path], concurrency: int, in_order: bool, asked: tuple[Fields, bool]
    ) -> AsyncGenerator[TaggedFile, None]:
        window = Window(
            files,
            lambda file: asyncio.create_task(self._tag_file(file, *asked)),
            concurrency,
            in_order,
        )
        try:
            while window.refill():
                if not (ended := window.take()):
                    await asyncio.wait(window.running(), return_when=asyncio.FIRST_COMPLETED)
                for file in ended:
                    yield file
        finally:
            await asyncio.gather(*window.cancel(), return_exceptions=True)

    async def _tag_file(self, file: Path, fields: Fields, with_embedding: bool) -> TaggedFile:
        try:
            return TaggedFile(file, await self._run(self._calls.tag(file, fields, with_embedding)))
        except TaggerError as error:
            return TaggedFile(file, error)

    async def _run(self, call: Call[T]) -> T:
        """Do what a call asks for, step by step, and return what it comes to."""
        reply: Any = None
        try:
            step = next(call)
            while True:
                try:
                    reply = await self._do(step)
                except Exception as error:
                    step = call.throw(error)
                else:
                    step = call.send(reply)
        except StopIteration as ended:
            answer: T = ended.value
            return answer

    async def _do(self, step: httpx.Request | Wait | Read) -> Any:
        match step:
            case httpx.Request():
                return await self._send(step)
            case Wait():
                return await self._wait(step.seconds)
            case Read():
                return await asyncio.to_thread(read_image, step.image)

    async def _send(self, request: httpx.Request) -> httpx.Response:
        """Send a request and read its response; raises `ResponseTooSlow` after the call's
        deadline.
        """
        deadline_s = request.extensions[DEADLINE_S]
        try:
            async with asyncio.timeout(deadline_s):
                async with aclosing(await self._http.send(request, stream=True)) as response:
                    return await aread_response(response, MAX_RESPONSE_BYTES, deadline_s)
        except TimeoutError as error:
            raise ResponseTooSlow("the response did not end in time") from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
