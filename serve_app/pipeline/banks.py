"""Building tag banks: rows that are known are reused, and the others are encoded.

The same code builds banks in one process and in the graph. What differs is passed in: how prompts
are encoded, and where calls that wait for storage run. Nothing here waits by itself, so that a
process without an event loop can run it too (`run_now`).

Not here: encoding prompts (`local_texts.py`, `graph/banks.py`), where rows are kept
(`tagging/known_rows.py`).
"""

from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np

from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.known_rows import KnownRows, missing_rows
from serve_app.tagging.same_text import naming_prompts, same_text_problems, shared_rows
from serve_app.tagging.tag_bank import (
    RowKey,
    TagBank,
    assemble_bank,
    mean_rows,
    prompts_of,
    row_keys,
    with_equal_rows,
)
from serve_app.tagging.vocabulary import TagVocabulary
from serve_app.untrusted.problems import raise_problems

Args = ParamSpec("Args")
Result = TypeVar("Result")
Rows = dict[RowKey, FloatArray]
EncodeRows = Callable[[Sequence[RowKey]], Awaitable[Rows]]


class Texts(Protocol):
    """Encodes prompts: by the text tower of this process, or by calls of a TextEncoder.

    Attributes:
        max_prompts: Number of prompts in one call of `encode`, unless one row has more.
    """

    max_prompts: int

    async def encode(self, prompts: Sequence[str], refuse_cut: bool) -> FloatArray:
        """Return text_embeds (n, D) float32, unit norm, of prompts.

        Raises:
            InvalidRequest: `refuse_cut`, and a prompt has more tokens than the tower reads.
            ServiceError: The prompts could not be encoded.
        """

    async def digests(self, prompts: Sequence[str], encodes_next: bool) -> list[bytes]:
        """Return a digest of each prompt's token ids.

        Args:
            prompts: The prompts.
            encodes_next: Whether `encode` is called afterwards, which needs the text tower.
        """


class RunCall(Protocol):
    """Runs a call that may wait for storage; `asyncio.to_thread` does."""

    async def __call__(
        self, call: Callable[Args, Result], /, *args: Args.args, **kwargs: Args.kwargs
    ) -> Result:
        """Return what the call returns."""


class RowEncoder:
    """Encodes rows of text embeddings, each the mean of its prompts."""

    def __init__(self, texts: Texts, known: KnownRows) -> None:
        self.texts = texts
        self.known = known

    async def parts(self, keys: Sequence[RowKey], refuse_cut: bool) -> AsyncIterator[Rows]:
        """Yield rows as they are encoded, some at a time."""
        for part in _in_parts(keys, self.texts.max_prompts):
            prompts = [prompt for key in part for prompt in prompts_of(key)]
            yield mean_rows(part, await self.texts.encode(prompts, refuse_cut))

    async def for_request(self, keys: Sequence[RowKey]) -> Rows:
        """Encode rows that a request needs, and remember them."""
        rows: Rows = {}
        async for new in self.parts(keys, refuse_cut=False):
            self.known.remember(new)
            rows |= new
        return rows


class BankBuilder:
    """Builds the banks of registered vocabularies and of requests."""

    def __init__(
        self,
        encoder: RowEncoder,
        canonicalize: Callable[[str], str],
        encode_rows: EncodeRows,
        run_call: RunCall,
        on_rows: Callable[[int, int], None] = lambda hits, misses: None,
    ) -> None:
        """Start with what is known.

        Args:
            encoder: Encodes rows.
            canonicalize: Returns a prompt as the checkpoint's tokenizer sees it.
            encode_rows: Encodes rows of requests: `RowEncoder.for_request`, or something around it.
            run_call: Runs calls that may wait for storage.
            on_rows: Called with the number of a request's cached rows, and 0. `encode_rows` counts
                the others.
        """
        self.on_rows = on_rows
        self._encoder = encoder
        self._known = encoder.known
        self._canonicalize = canonicalize
        self._encode_rows = encode_rows
        self._run_call = run_call
        self._unfinished: Rows = {}

    async def registered(self, vocabulary: TagVocabulary, banks: Iterable[TagBank]) -> TagBank:
        """Return the bank of a registered vocabulary: the stored one, or a new one.

        Rows that were encoded before a failure are kept, and the next call continues from there.

        Args:
            vocabulary: The vocabulary.
            banks: Loaded banks, whose rows are reused.

        Raises:
            ServiceError: The prompts could not be encoded.
            InvalidRequest: A name is too long for the checkpoint.
            ConfigError: Two names are the same text to the checkpoint.
        """
        stored = await self._run_call(self._known.stored, vocabulary)
        if stored is not None:
            return stored

        found = await self._run_call(self._known.find, row_keys(vocabulary), list(banks))
        found |= self._unfinished
        missing = missing_rows(vocabulary, found)
        digests = await self._encoder.texts.digests(naming_prompts(vocabulary), bool(missing))
        raise_problems(same_text_problems(vocabulary, digests))

        async for new in self._encoder.parts(missing, refuse_cut=True):
            self._unfinished |= new
            found |= new
        bank = await self._run_call(self._known.keep, vocabulary, found)
        self._unfinished.clear()
        return bank

    async def requested(self, vocabulary: TagVocabulary) -> TagBank:
        """Return the bank of a request's vocabulary; labels that are one text have one row.

        Raises:
            ServiceError: The prompts could not be encoded.
        """
        shared = shared_rows(row_keys(vocabulary), self._canonicalize)
        rows = await self.rows(list(dict.fromkeys(shared.values())))
        own_rows = {key: rows[same] for key, same in shared.items()}
        return with_equal_rows(assemble_bank(vocabulary, own_rows, self._known.encoder))

    async def rows(self, keys: Sequence[RowKey]) -> Rows:
        """Return rows that a request needs; those that are not cached are encoded.

        Raises:
            ServiceError: The prompts could not be encoded.
        """
        rows = self._known.cached(keys)
        if rows:
            self.on_rows(len(rows), 0)
        missing = [key for key in dict.fromkeys(keys) if key not in rows]
        if missing:
            rows |= await self._encode_rows(missing)
        return rows

    async def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Return embeddings (n, D) float32, unit norm, of texts as they are, without a template.

        Raises:
            ServiceError: The texts could not be encoded.
        """
        rows = await self.rows([((), text) for text in texts])
        return np.stack([rows[(), text] for text in texts])


def _in_parts(keys: Sequence[RowKey], max_prompts: int) -> Iterator[Sequence[RowKey]]:
    """Yield rows in parts of at most `max_prompts` prompts; a row is never divided."""
    start = 0
    num_prompts = 0
    for i, (templates, _) in enumerate(keys):
        size = max(1, len(templates))
        if num_prompts and num_prompts + size > max_prompts:
            yield keys[start:i]
            start = i
            num_prompts = 0
        num_prompts += size
    if start < len(keys):
        yield keys[start:]


async def call_now(
    call: Callable[Args, Result], /, *args: Args.args, **kwargs: Args.kwargs
) -> Result:
    """Call a function in this thread: the `RunCall` of a process without an event loop."""
    return call(*args, **kwargs)


def run_now(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine that never waits to its end, without an event loop.

    So callers need not be in an event loop, and may be in one of any thread.
    """
    try:
        coroutine.send(None)
    except StopIteration as ended:
        result: Result = ended.value
        return result
    finally:
        coroutine.close()
    raise AssertionError("the coroutine waits for an event loop")
