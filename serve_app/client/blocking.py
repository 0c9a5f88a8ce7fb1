"""`Client`: the calls, driven without asyncio."""

import concurrent.futures
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
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
from serve_app.untrusted.bounded_files import read_within
from serve_app.untrusted.bounded_http import MAX_RESPONSE_BYTES, ResponseTooSlow, read_response

T = TypeVar("T")


class Client(Face):
    """A service, spoken to without asyncio. Threads may share it; `close` it, or use it in a
    `with`.

    Args:
        base_url: The service's address, such as `http://127.0.0.1:8000`.
        api_key: Sent as `Authorization: Bearer`; the environment's `SIGLIP_API_KEY` if left out.
        transport: httpx's, for a proxy or for tests.
        wait: Waits for so many seconds, for tests.
        settings: How it tries; see `Settings`.

    Raises:
        ConfigError: The address, the key or a setting cannot work.
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
        """Tag one picture.

        Args:
            image: A path, the bytes of a picture file, or a file open for reading bytes.
            return_embedding: Give the picture's embedding too.
            options: What is asked for; see docs/api.md.

        Raises:
            RequestError: The picture or an option cannot work.
            ServiceError: There was no answer, after all tries.
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
        """Tag pictures in requests of several, in the order given; one that failed has its error in
        its place.

        Args:
            images: As for `tag`; each is read when its request is made.
            images_per_request: Pictures in one request at most.
            return_embedding: Give the pictures' embeddings too.
            options: What is asked for; see docs/api.md.

        Raises:
            RequestError: An option cannot work, or a request is too large.
            ServiceError: There was no answer, after all tries.
        """
        return self._run(
            self._calls.tag_many(images, fields_of(options), images_per_request, return_embedding)
        )

    def score(
        self, embeddings: Sequence[Sequence[float] | str], **options: Unpack[ScoreOptions]
    ) -> list[Outcome]:
        """Tag stored image embeddings, without pixels.

        Args:
            embeddings: Of this checkpoint, each D numbers or base64 of little-endian float32; a
                NumPy array (n, D) will do.
            options: What is asked for; see docs/api.md.

        Raises:
            RequestError: The embeddings or an option cannot work.
            ServiceError: There was no answer, after all tries.
        """
        return self._run(self._calls.score(embeddings, fields_of(options)))

    def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Return embeddings, each (D,) float32 of unit norm, of texts as they are, without a
        template.

        Raises:
            RequestError: A text cannot work.
            ServiceError: There was no answer, after all tries.
        """
        return self._run(self._calls.embed(texts))

    def vocabularies(self) -> tuple[VocabularyCard, ...]:
        """Return what vocabularies there are, the default one first; raises `ServiceError` if there
        is no answer.
        """
        return self._run(self._calls.vocabularies())

    def vocabulary(self, name: str) -> Vocabulary:
        """Return a vocabulary with its tags; raises `UnknownVocabulary`, or `ServiceError` if there
        is no answer.
        """
        return self._run(self._calls.vocabulary(name))

    def model(self) -> ModelCard:
        """Return what is served; raises `ServiceError` if there is no answer."""
        return self._run(self._calls.model())

    def ready(self) -> bool:
        """Return whether the models are loaded, asking once; nobody at the address is a no."""
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
        """Tag files a few at a time, as they end; one that failed has its error and the others go
        on.

        Args:
            paths: Files and folders, or one of them; a file is read when its turn comes.
            concurrency: How many are under way at the same time, and in memory.
            in_order: Give them in the order of `paths`, instead of as they end.
            return_embedding: Give the pictures' embeddings too.
            options: What is asked for; see docs/api.md.

        Raises:
            ConfigError: `concurrency` is less than 1.
        """
        return self._tag_files(
            files_of(paths), concurrency, in_order, (fields_of(options), return_embedding)
        )

    def _tag_files(
        self, files: Iterator[Path], concurrency: int, in_order: bool, asked: tuple[Fields, bool]
    ) -> Generator[TaggedFile, None, None]:
        with ThreadPoolExecutor(max(1, concurrency)) as threads:
            window = Window(
                files,
                lambda file: threads.submit(self._tag_file, file, *asked),
                concurrency,
                in_order,
            )
            try:
                while window.refill():
                    if not (ended := window.take()):
                        concurrent.futures.wait(
                            window.running(), return_when=concurrent.futures.FIRST_COMPLETED
                        )
                    yield from ended
            finally:
                window.cancel()

    def _tag_file(self, file: Path, fields: Fields, with_embedding: bool) -> TaggedFile:
        try:
            return TaggedFile(file, self._run(self._calls.tag(file, fields, with_embedding)))
        except TaggerError as error:
            return TaggedFile(file, error)

    def _run(self, call: Call[T]) -> T:
        """Do what a call asks for, step by step, and return what it comes to."""
        reply: Any = None
        try:
            step = next(call)
            while True:
                try:
                    reply = self._do(step)
                except Exception as error:
                    step = call.throw(error)
                else:
                    step = call.send(reply)
        except StopIteration as ended:
            answer: T = ended.value
            return answer

    def _do(self, step: httpx.Request | Wait | Read) -> Any:
        match step:
            case httpx.Request():
                return self._send(step)
            case Wait():
                return self._wait(step.seconds)
            case Read():
                return read_image(step.image)

    def _send(self, request: httpx.Request) -> httpx.Response:
        """Send a request and read its response; raises `ResponseTooSlow` after the call's
        deadline.
        """
        deadline_s = request.extensions[DEADLINE_S]

        def exchange() -> httpx.Response:
            with closing(self._http.send(request, stream=True)) as response:
                return read_response(response, MAX_RESPONSE_BYTES, deadline_s)

        try:
            # in a thread: httpx's time-outs are for each read, and a head may arrive byte by byte
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
