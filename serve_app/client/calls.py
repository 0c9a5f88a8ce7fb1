"""What can be asked of the service, as generators that yield steps; see `exchange.py` for what a
step is.

Both clients drive the same generators (`blocking.py`, `awaited.py`), so nothing is written twice
for asyncio.
"""

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar
from urllib.parse import quote

from serve_app.client.answers import (
    EmbeddedTexts,
    Many,
    ModelCard,
    Tagged,
    Vocabularies,
    Vocabulary,
    VocabularyCard,
    pack_embedding,
)
from serve_app.client.exchange import Ask, Call, Exchange, Read, Wait
from serve_app.client.failures import of_entry
from serve_app.client.images import Image
from serve_app.client.options import Fields, as_query
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
"""Half of what the service takes unless it is set otherwise."""
MAX_REQUEST_BYTES = 32 * 2**20
"""Pictures in one request of several: 43 MiB as base64, of the 64 MiB that the service takes unless
it is set otherwise."""
ONCE = Retries(max_tries=1)

T = TypeVar("T")
Outcome = Tagged | TaggerError
"""One picture's tags, or why it has none."""


class Calls:
    """Every call of one service."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def tag(self, image: Image, fields: Fields, with_embedding: bool = False) -> Call[Tagged]:
        """Tag one picture: its bytes are the body, unless the options fit into no query string."""
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
        ask = Ask("POST", "/v1/tag", data, "application/octet-stream", query)
        return (yield from self._exchange.run(ask, Tagged.model_validate_json))

    def tag_many(
        self,
        images: Iterable[Image],
        fields: Fields,
        images_per_request: int,
        with_embedding: bool = False,
    ) -> Call[list[Outcome]]:
        """Tag pictures in requests of several; each has its tags or its error, in the order
        given.
        """
        fields = _with_embedding(fields) if with_embedding else fields
        outcomes: dict[int, Outcome] = {}
        chunk: dict[int, bytes] = {}
        for at, image in enumerate(images):
            try:
                data: bytes = yield Read(image)
            except RequestError as error:
                outcomes[at] = error
                continue
            if chunk and (
                len(chunk) == images_per_request
                or sum(map(len, chunk.values())) + len(data) > MAX_REQUEST_BYTES
            ):
                outcomes |= yield from self._tag_chunk(chunk, fields)
                chunk = {}
            chunk[at] = data
        if chunk:
            outcomes |= yield from self._tag_chunk(chunk, fields)
        return [outcome for _, outcome in sorted(outcomes.items(), key=lambda entry: entry[0])]

    def _tag_chunk(self, chunk: dict[int, bytes], fields: Fields) -> Call[dict[int, Outcome]]:
        """Tag pictures by one request; those that were refused for now are sent again."""
        trying = self._exchange.trying()
        outcomes = dict[int, Outcome]()
        while True:
            body = fields | {"images": [base64.b64encode(data).decode() for data in chunk.values()]}
            try:
                found = yield from self._post("/v1/tag", body, _outcomes_reader(len(chunk)))
            except PayloadTooLarge as error:
                if len(chunk) > 1:
                    raise
                found = [error]
            outcomes |= zip(chunk, found, strict=True)
            chunk = {
                at: data
                for at, data in chunk.items()
                if isinstance(outcomes[at], Overloaded | Unavailable)
            }
            wait_s = trying.next_wait_s() if chunk else None
            if wait_s is None:
                return outcomes
            yield Wait(wait_s)

    def score(
        self, embeddings: Sequence[Sequence[float] | str], fields: Fields
    ) -> Call[list[Outcome]]:
        """Tag stored embeddings, each D numbers or base64 of little-endian float32, in the order
        given.
        """
        outcomes: list[Outcome] = []
        for start in range(0, len(embeddings), EMBEDDINGS_PER_REQUEST):
            part = embeddings[start : start + EMBEDDINGS_PER_REQUEST]
            rows = [row if isinstance(row, str) else pack_embedding(row) for row in part]
            outcomes += yield from self._post(
                "/v1/score", fields | {"embeddings": rows}, _outcomes_reader(len(rows))
            )
        return outcomes

    def embed(self, texts: Sequence[str]) -> Call[list[tuple[float, ...]]]:
        """Embed texts as they are, without a template."""
        body = {"input": list(texts), "encoding_format": "base64"}
        answer = yield from self._post("/v1/embeddings", body, EmbeddedTexts.model_validate_json)
        return [entry.embedding for entry in sorted(answer.data, key=lambda entry: entry.index)]

    def vocabularies(self) -> Call[tuple[VocabularyCard, ...]]:
        """Ask what vocabularies there are."""
        return (
            yield from self._exchange.run(
                Ask("GET", "/v1/vocabularies"), Vocabularies.model_validate_json
            )
        ).vocabularies

    def vocabulary(self, name: str) -> Call[Vocabulary]:
        """Ask for one vocabulary with its tags."""
        return (
            yield from self._exchange.run(
                Ask("GET", f"/v1/vocabularies/{quote(name, safe='')}"),
                Vocabulary.model_validate_json,
            )
        )

    def model(self) -> Call[ModelCard]:
        """Ask what is served."""
        return (
            yield from self._exchange.run(Ask("GET", "/v1/model"), ModelCard.model_validate_json)
        )

    def ready(self) -> Call[bool]:
        """Ask once whether the models are loaded; no answer is a no."""
        try:
            yield from self._exchange.run(Ask("GET", "/readyz"), json.loads, ONCE)
        except (Unavailable, Overloaded, DeadlineExceeded):
            return False
        return True

    def _post(self, path: str, body: Fields, read: Callable[[bytes], T]) -> Call[T]:
        content = json.dumps(body, allow_nan=False).encode()
        return (yield from self._exchange.run(Ask("POST", path, content, "application/json"), read))


def _with_embedding(fields: Fields) -> Fields:
    return fields | {"return": "embedding", "encoding_format": "base64"}


def _outcomes_reader(count: int) -> Callable[[bytes], list[Outcome]]:
    def read(content: bytes) -> list[Outcome]:
        entries = Many.model_validate_json(content).each()
        if len(entries) != count:
            raise ValueError(f"{len(entries)} results for {count} inputs")
        return [of_entry(entry) or Tagged.model_validate(entry) for entry in entries]

    return read
