"""`Client`: performs API calls without asyncio."""

import concurrent.futures
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
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
from serve_app.untrusted.bounded_files import read_within
from serve_app.untrusted.bounded_http import MAX_RESPONSE_BYTES, ResponseTooSlow, read_response

T = TypeVar("T")


class Client(BaseClient):
    """A client of one service, for code without asyncio.

    Several threads may share a client. Call `close` at the end, or use the client in a `with`.

    Args:
        base_url: The service's address, such as `http://127.0.0.1:8000`.
        api_key: Sent as `Authorization: Bearer`; default: the environment variable
            `SIGLIP_API_KEY`.
        transport: An httpx transport, for a proxy or for tests.
        wait: Waits for a number of seconds; tests replace it.
        settings: Timeouts and retries; see `Settings`.

    Raises:
        ConfigError: The address, the key or a setting is not valid.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        wait: Callable[[float], None] = time.sleep,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(base_url, api_key, settings)
        self._http = httpx.Client(transport=transport, limits=LIMITS)
        self._wait = wait

    def tag(
        self, image: Image, *, return_embedding: bool = False, **options: Unpack[Options]
    ) -> Tagged:
        """Tag one image.

        Args:
            image: A path, the bytes of an image file, or a file open in binary mode.
            return_embedding: Whether to return the image's embedding too.
            options: Options of the request; see docs/api.md.

        Raises:
            RequestError: The image or an option is not valid.
            ServiceError: The service did not respond, or failed, in every try.
        """
        return self._run(self._calls.tag(image, fields_of(options), return_embedding))

    def tag_many(
        self,
        images: Iterable[Image],
        *,
        images_per_request: int = IMAGES_PER_REQUEST,
        return_embedding: bool = False,
        **options: Unpack[Options],
    ) -> list[Outcome]:
        """Tag images, several in a request, and return the outcomes in input order.

        The outcome of an image that cannot be tagged is its error.

        Args:
            images: Images as for `tag`; each one is read shortly before it is sent.
            images_per_request: Maximum number of images in one request.
            return_embedding: Whether to return the images' embeddings too.
            options: Options of the requests; see docs/api.md.

        Raises:
            RequestError: An option is not valid, or a request is too large.
            ServiceError: The service did not respond, or failed, in every try.
        """
        return self._run(
            self._calls.tag_many(images, fields_of(options), images_per_request, return_embedding)
        )

    def tag_group(
        self,
        images: Sequence[Image],
        *,
        return_embedding: bool = False,
        **options: Unpack[Options],
    ) -> list[Outcome]:
        """Tag a few images in one request, and return the outcomes in input order.

        Unlike `tag_many`, it raises nothing: an error of the request is the outcome of each image.
        If the request is too large or takes too long, its images are sent in smaller ones.

        Args:
            images: Images as for `tag`; all of them are in memory at the same time.
            return_embedding: Whether to return the images' embeddings too.
            options: Options of the request; see docs/api.md.
        """
        return self._run(self._calls.tag_group(images, fields_of(options), return_embedding))

    def score(
        self, embeddings: Sequence[Sequence[float] | str], **options: Unpack[ScoreOptions]
    ) -> list[Outcome]:
        """Tag stored image embeddings, without pixels.

        Args:
            embeddings: (n, D) embeddings of the service's checkpoint, such as a NumPy array; each
                row may also be base64 of little-endian float32.
            options: Options of the requests; see docs/api.md.

        Raises:
            RequestError: The embeddings or an option is not valid.
            ServiceError: The service did not respond, or failed, in every try.
        """
        return self._run(self._calls.score(embeddings, fields_of(options)))

    def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Return the embeddings of texts, each (D,) float32, unit norm.

        The texts are embedded without a prompt template.

        Raises:
            RequestError: A text is not valid.
            ServiceError: The service did not respond, or failed, in every try.
        """
        return self._run(self._calls.embed(texts))

    def vocabularies(self) -> tuple[VocabularyCard, ...]:
        """Return the vocabularies of the service, the default one first.

        Raises:
            ServiceError: The service did not respond, or failed, in every try.
        """
        return self._run(self._calls.vocabularies())

    def vocabulary(self, name: str) -> Vocabulary:
        """Return a vocabulary with its tags.

        Raises:
            UnknownVocabulary: The service has no vocabulary of that name.
            ServiceError: The service did not respond, or failed, in every try.
        """
        return self._run(self._calls.vocabulary(name))

    def model(self) -> ModelCard:
        """Return a description of the model that the service runs.

        Raises:
            ServiceError: The service did not respond, or failed, in every try.
        """
        return self._run(self._calls.model())

    def ready(self) -> bool:
        """Return whether the models are loaded; False if the service does not respond.

        The request is sent only once, without retries.
        """
        return self._run(self._calls.ready())

    def tag_files(
        self,
        paths: Paths,
        *,
        concurrency: int = CONCURRENCY,
        in_order: bool = False,
        return_embedding: bool = False,
        **options: Unpack[Options],
    ) -> Generator[TaggedFile, None, None]:
        """Tag files, a few at a time, and yield each as it completes.

        The outcome of a file that cannot be tagged is its error; the other files are tagged
        anyway. While the service responds fast, several files are sent in one request, and they
        complete together.

        Args:
            paths: One path or several, of files and folders; a file is read shortly before it is
                sent.
            concurrency: Number of images that are in flight and in memory at the same time.
            in_order: Whether to yield files in the order of `paths` instead of as they complete.
            return_embedding: Whether to return the images' embeddings too.
            options: Options of the requests; see docs/api.md.

        Raises:
            ConfigError: `concurrency` is less than 1.
        """
        size = GroupSize(concurrency)
        tag_group = partial(
            self._tag_group, size, fields=fields_of(options), with_embedding=return_embedding
        )
        return self._tag_files(files_of(paths), tag_group, size, concurrency, in_order)

    def _tag_files(
        self,
        files: Iterator[Path],
        tag_group: Callable[[list[Path]], list[TaggedFile]],
        size: GroupSize,
        concurrency: int,
        in_order: bool,
    ) -> Generator[TaggedFile, None, None]:
        with ThreadPoolExecutor(max(1, concurrency)) as threads:
            window = Window(
                files, lambda group: threads.submit(tag_group, group), size, concurrency, in_order
            )
            try:
                while window.refill():
                    results = window.take()
                    if not results:
                        concurrent.futures.wait(
                            window.running(), return_when=concurrent.futures.FIRST_COMPLETED
                        )
                    yield from results
            finally:
                window.cancel()

    def _tag_group(
        self, size: GroupSize, files: list[Path], fields: Fields, with_embedding: bool
    ) -> list[TaggedFile]:
        started_s = time.monotonic()
        outcomes = self._run(self._calls.tag_group(files, fields, with_embedding))
        size.note(len(files), time.monotonic() - started_s)
        return list(map(TaggedFile, files, outcomes))

    def _run(self, call: Call[T]) -> T:
        """Perform the steps of a call, and return its result."""
        result: Any = None
        try:
            step = next(call)
            while True:
                try:
                    result = self._do(step)
                except Exception as error:
                    step = call.throw(error)
                else:
                    step = call.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value

    def _do(self, step: httpx.Request | Wait | Read) -> Any:
        match step:
            case httpx.Request():
                return self._send(step)
            case Wait():
                return self._wait(step.seconds)
            case Read():
                return read_image(step.image)

    def _send(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return its response.

        Raises:
            ResponseTooSlow: The response did not end before the deadline of the call.
        """
        deadline_s = request.extensions[DEADLINE_S]

        def exchange() -> httpx.Response:
            with closing(self._http.send(request, stream=True)) as response:
                return read_response(response, MAX_RESPONSE_BYTES, deadline_s)

        try:
            # in a thread: httpx applies its timeouts to each read, and a hostile server may send
            # the headers byte by byte
            return read_within(exchange, deadline_s)
        except TimeoutError as error:
            raise ResponseTooSlow("the response did not end in time") from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
