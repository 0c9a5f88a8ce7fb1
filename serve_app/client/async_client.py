"""`AsyncClient`: performs API calls with asyncio."""

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import httpx

from serve_app.client.base_client import (
    CONCURRENCY,
    IMAGES_PER_REQUEST,
    LIMITS,
    BaseClient,
    Settings,
)
from serve_app.client.calls import Outcome
from serve_app.client.exchange import DEADLINE_S, Call, Read, Wait
from serve_app.client.folders import Paths, TaggedFile, Window, files_of
from serve_app.client.group_size import GroupSize
from serve_app.client.images import Image, read_image
from serve_app.client.options import Fields, Options, ScoreOptions, fields_of
from serve_app.client.responses import ModelCard, Tagged, Vocabulary, VocabularyCard
from serve_app.untrusted.bounded_http import MAX_RESPONSE_BYTES, ResponseTooSlow, aread_response

T = TypeVar("T")


class AsyncClient(BaseClient):
    """A client of one service, for asyncio; it has the methods and arguments of `Client`.

    Call `aclose` at the end, or use the client in an `async with`.
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
        """Tag one image; see `Client.tag`."""
        return await self._run(self._calls.tag(image, fields_of(options), return_embedding))

    async def tag_many(
        self,
        images: Iterable[Image],
        *,
        images_per_request: int = IMAGES_PER_REQUEST,
        return_embedding: bool = False,
        **options: Unpack[Options],
    ) -> list[Outcome]:
        """Tag images, several in a request; see `Client.tag_many`."""
        return await self._run(
            self._calls.tag_many(images, fields_of(options), images_per_request, return_embedding)
        )

    async def tag_group(
        self,
        images: Sequence[Image],
        *,
        return_embedding: bool = False,
        **options: Unpack[Options],
    ) -> list[Outcome]:
        """Tag a few images in one request; see `Client.tag_group`."""
        return await self._run(self._calls.tag_group(images, fields_of(options), return_embedding))

    async def score(
        self, embeddings: Sequence[Sequence[float] | str], **options: Unpack[ScoreOptions]
    ) -> list[Outcome]:
        """Tag stored image embeddings; see `Client.score`."""
        return await self._run(self._calls.score(embeddings, fields_of(options)))

    async def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Embed texts; see `Client.embed`."""
        return await self._run(self._calls.embed(texts))

    async def vocabularies(self) -> tuple[VocabularyCard, ...]:
        """Return the vocabularies of the service; see `Client.vocabularies`."""
        return await self._run(self._calls.vocabularies())

    async def vocabulary(self, name: str) -> Vocabulary:
        """Return a vocabulary with its tags; see `Client.vocabulary`."""
        return await self._run(self._calls.vocabulary(name))

    async def model(self) -> ModelCard:
        """Return a description of the model; see `Client.model`."""
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
        """Tag files, a few at a time, for `async for`; see `Client.tag_files`."""
        size = GroupSize(concurrency)
        tag_group = partial(
            self._tag_group, size, fields=fields_of(options), with_embedding=return_embedding
        )
        return self._tag_files(files_of(paths), tag_group, size, concurrency, in_order)

    async def _tag_files(
        self,
        files: Iterator[Path],
        tag_group: Callable[[list[Path]], Coroutine[Any, Any, list[TaggedFile]]],
        size: GroupSize,
        concurrency: int,
        in_order: bool,
    ) -> AsyncGenerator[TaggedFile, None]:
        window = Window(
            files,
            lambda group: asyncio.create_task(tag_group(group)),
            size,
            concurrency,
            in_order,
        )
        try:
            while window.refill():
                results = window.take()
                if not results:
                    await asyncio.wait(window.running(), return_when=asyncio.FIRST_COMPLETED)
                for file in results:
                    yield file
        finally:
            await asyncio.gather(*window.cancel(), return_exceptions=True)

    async def _tag_group(
        self, size: GroupSize, files: list[Path], fields: Fields, with_embedding: bool
    ) -> list[TaggedFile]:
        started_s = time.monotonic()
        outcomes = await self._run(self._calls.tag_group(files, fields, with_embedding))
        size.note(len(files), time.monotonic() - started_s)
        return list(map(TaggedFile, files, outcomes))

    async def _run(self, call: Call[T]) -> T:
        """Perform the steps of a call, and return its result."""
        result: Any = None
        try:
            step = next(call)
            while True:
                try:
                    result = await self._do(step)
                except Exception as error:
                    step = call.throw(error)
                else:
                    step = call.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value

    async def _do(self, step: httpx.Request | Wait | Read) -> Any:
        match step:
            case httpx.Request():
                return await self._send(step)
            case Wait():
                return await self._wait(step.seconds)
            case Read():
                return await asyncio.to_thread(read_image, step.image)

    async def _send(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return its response.

        Raises:
            ResponseTooSlow: The response did not end before the deadline of the call.
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
