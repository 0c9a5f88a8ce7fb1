"""The calls of the service's API, as generators that yield steps; see `exchange.py`.

Both clients drive the same generators (`sync_client.py`, `async_client.py`), so each call is
written only once.
"""

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar
from urllib.parse import quote

import httpx

from serve_app.client.exchange import Call, Exchange, Read, RequestParts, Wait
from serve_app.client.failures import error_of_entry
from serve_app.client.images import Image
from serve_app.client.options import Fields, as_query
from serve_app.client.responses import (
    EmbeddedTexts,
    ModelCard,
    MultiResponse,
    Tagged,
    Vocabularies,
    Vocabulary,
    VocabularyCard,
    pack_embedding,
)
from serve_app.client.retries import Retries
from serve_app.errors import (
    DeadlineExceeded,
    Overloaded,
    PayloadTooLarge,
    RequestError,
    TaggerError,
    Unavailable,
)

EMBEDDINGS_PER_REQUEST = 512
"""Number of embeddings in one request: half of what the service accepts by default."""
MAX_REQUEST_BYTES = 32 * 2**20
"""Maximum size of the images in one request. As base64 they have 43 MiB; the service accepts bodies
of 64 MiB by default."""
ONCE = Retries(max_tries=1)

T = TypeVar("T")
Outcome = Tagged | TaggerError
"""Tags of one image, or the error that occurred instead."""


class Calls:
    """All API calls to one service."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def tag(self, image: Image, fields: Fields, with_embedding: bool = False) -> Call[Tagged]:
        """Tag one image.

        The body is the image's bytes, or JSON if the options do not fit into a query string.
        """
        data: bytes = yield Read(image)
        fields = _with_embedding(fields) if with_embedding else fields
        query = as_query(fields)
        if query is None:
            return (
                yield from self._post(
                    "/v1/tag",
                    fields | {"image": base64.b64encode(data).decode()},
                    Tagged.model_validate_json,
                )
            )
        parts = RequestParts("POST", "/v1/tag", data, "application/octet-stream", query)
        return (yield from self._exchange.run(parts, Tagged.model_validate_json))

    def tag_many(
        self,
        images: Iterable[Image],
        fields: Fields,
        images_per_request: int,
        with_embedding: bool = False,
    ) -> Call[list[Outcome]]:
        """Tag images, several in a request, and return their outcomes in input order."""
        fields = _with_embedding(fields) if with_embedding else fields
        outcomes: dict[int, Outcome] = {}
        chunk: dict[int, bytes] = {}
        for i, image in enumerate(images):
            try:
                data: bytes = yield Read(image)
            except RequestError as error:
                outcomes[i] = error
                continue
            if chunk and (
                len(chunk) == images_per_request
                or sum(map(len, chunk.values())) + len(data) > MAX_REQUEST_BYTES
            ):
                outcomes |= yield from self._tag_chunk(chunk, fields)
                chunk = {}
            chunk[i] = data
        if chunk:
            outcomes |= yield from self._tag_chunk(chunk, fields)
        return [outcome for _, outcome in sorted(outcomes.items(), key=lambda entry: entry[0])]

    def tag_group(
        self, images: Sequence[Image], fields: Fields, with_embedding: bool = False
    ) -> Call[list[Outcome]]:
        """Tag a few images in one request; an error of the request is the outcome of each image.

        If the request is too large or takes too long, its images are sent in smaller ones.
        """
        if len(images) == 1:
            try:
                return [(yield from self.tag(images[0], fields, with_embedding))]
            except TaggerError as error:
                return [error]

        fields = _with_embedding(fields) if with_embedding else fields
        outcomes: dict[int, Outcome] = {}
        chunk: dict[int, bytes] = {}
        for i, image in enumerate(images):
            try:
                chunk[i] = yield Read(image)
            except RequestError as error:
                outcomes[i] = error
        outcomes |= yield from self._tag_or_split(chunk, fields)
        return [outcomes[i] for i in range(len(images))]

    def _tag_or_split(self, chunk: dict[int, bytes], fields: Fields) -> Call[dict[int, Outcome]]:
        if not chunk:
            return {}
        if len(chunk) == 1 or sum(map(len, chunk.values())) <= MAX_REQUEST_BYTES:
            try:
                return (yield from self._tag_chunk(chunk, fields))
            except TaggerError as error:
                is_divisible = isinstance(error, PayloadTooLarge | DeadlineExceeded)
                if len(chunk) == 1 or not is_divisible:
                    return dict.fromkeys(chunk, error)

        entries = list(chunk.items())
        middle = len(entries) // 2
        outcomes = yield from self._tag_or_split(dict(entries[:middle]), fields)
        return outcomes | (yield from self._tag_or_split(dict(entries[middle:]), fields))

    def _tag_chunk(self, chunk: dict[int, bytes], fields: Fields) -> Call[dict[int, Outcome]]:
        """Tag images in one request, and retry those that failed temporarily."""
        state = self._exchange.start_tries()
        outcomes = dict[int, Outcome]()
        while True:
            try:
                results = yield from self._tag_together(list(chunk.values()), fields)
            except PayloadTooLarge as error:
                # the service reports the size of the whole request, so only a single image can
                # be blamed for it
                if len(chunk) > 1:
                    raise
                results = [error]
            outcomes |= zip(chunk, results, strict=True)
            chunk = {
                i: data
                for i, data in chunk.items()
                if isinstance(outcomes[i], Overloaded | Unavailable)
            }
            wait_s = state.next_wait_s() if chunk else None
            if wait_s is None:
                return outcomes
            yield Wait(wait_s)

    def _tag_together(self, images: Sequence[bytes], fields: Fields) -> Call[list[Outcome]]:
        """Send images in one request.

        Several are the files of a form; base64 in JSON would take a third more bytes. A form with
        one file would get the response to a single image, and JSON carries options of any length.
        """
        parse = _outcomes_parser(len(images))
        query = as_query(fields)
        if len(images) == 1 or query is None:
            body = fields | {"images": [base64.b64encode(data).decode() for data in images]}
            return (yield from self._post("/v1/tag", body, parse))

        files = [("images", (str(i), data)) for i, data in enumerate(images)]
        form = httpx.Request("POST", self._exchange.base_url, files=files)
        parts = RequestParts("POST", "/v1/tag", form.read(), form.headers["Content-Type"], query)
        return (yield from self._exchange.run(parts, parse))

    def score(
        self, embeddings: Sequence[Sequence[float] | str], fields: Fields
    ) -> Call[list[Outcome]]:
        """Tag stored embeddings, and return their outcomes in input order.

        Each embedding is D numbers or base64 of little-endian float32.
        """
        outcomes: list[Outcome] = []
        for start in range(0, len(embeddings), EMBEDDINGS_PER_REQUEST):
            chunk = embeddings[start : start + EMBEDDINGS_PER_REQUEST]
            rows = [row if isinstance(row, str) else pack_embedding(row) for row in chunk]
            outcomes += yield from self._post(
                "/v1/score", fields | {"embeddings": rows}, _outcomes_parser(len(rows))
            )
        return outcomes

    def embed(self, texts: Sequence[str]) -> Call[list[tuple[float, ...]]]:
        """Embed texts without applying a prompt template."""
        body = {"input": list(texts), "encoding_format": "base64"}
        response = yield from self._post("/v1/embeddings", body, EmbeddedTexts.model_validate_json)
        entries = sorted(response.data, key=lambda entry: entry.index)
        return [entry.embedding for entry in entries]

    def vocabularies(self) -> Call[tuple[VocabularyCard, ...]]:
        """List the vocabularies."""
        response = yield from self._get("/v1/vocabularies", Vocabularies.model_validate_json)
        return response.vocabularies

    def vocabulary(self, name: str) -> Call[Vocabulary]:
        """Get one vocabulary with its tags."""
        path = f"/v1/vocabularies/{quote(name, safe='')}"
        return (yield from self._get(path, Vocabulary.model_validate_json))

    def model(self) -> Call[ModelCard]:
        """Get the description of the model."""
        return (yield from self._get("/v1/model", ModelCard.model_validate_json))

    def ready(self) -> Call[bool]:
        """Check once whether the models are loaded; False if the service does not respond."""
        try:
            yield from self._get("/readyz", json.loads, ONCE)
        except (Unavailable, Overloaded, DeadlineExceeded):
            return False
        return True

    def _get(
        self, path: str, parse: Callable[[bytes], T], retries: Retries | None = None
    ) -> Call[T]:
        return (yield from self._exchange.run(RequestParts("GET", path), parse, retries))

    def _post(self, path: str, body: Fields, parse: Callable[[bytes], T]) -> Call[T]:
        content = json.dumps(body, allow_nan=False).encode()
        parts = RequestParts("POST", path, content, "application/json")
        return (yield from self._exchange.run(parts, parse))


def _with_embedding(fields: Fields) -> Fields:
    return fields | {"return": "embedding", "encoding_format": "base64"}


def _outcomes_parser(count: int) -> Callable[[bytes], list[Outcome]]:
    """Return a parser of a response that must have `count` results."""

    def parse(content: bytes) -> list[Outcome]:
        entries = MultiResponse.model_validate_json(content).merged_results()
        if len(entries) != count:
            raise ValueError(f"{len(entries)} results for {count} inputs")
        return [error_of_entry(entry) or Tagged.model_validate(entry) for entry in entries]

    return parse
