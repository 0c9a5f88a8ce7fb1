"""Building tag banks in a Postprocessor: what is known is taken, what is missing is encoded once,
by the TextEncoder.
"""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

import numpy as np

from serve_app.graph.calls import InnerCalls
from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.known_rows import KnownRows, missing_rows
from serve_app.tagging.problems import raise_problems
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

PROMPTS_PER_CALL = 64
"""Prompts sent to a TextEncoder at once: some seconds of work for a large tower on a CPU, and an
answer of 0.4 MiB."""
DIGESTS_PER_CALL = 2_000
"""Prompts tokenized by a TextEncoder at once, which takes up to a second."""
VOCABULARY_TIMEOUT_S = 900.0
"""For one such call when a registered vocabulary is encoded: the TextEncoder may have to start
first."""
MAX_REQUESTS_ENCODING = 4
"""Requests whose labels are encoded at the same time; the next waits."""


class BankBuilder:
    """Makes the bank of a vocabulary; the same row asked for by several at once is encoded once."""

    def __init__(
        self,
        texts: InnerCalls,
        known: KnownRows,
        on_rows: Callable[[int, int], None] = lambda hits, misses: None,
        canonicalize: Callable[[str], str] = str,
    ) -> None:
        """Start with what is known.

        Args:
            texts: Calls of the TextEncoder.
            known: Where rows may be found.
            on_rows: Told of a request's rows: how many were known or under way, and how many have
                to be encoded.
            canonicalize: How the checkpoint's tokenizer sees a prompt.
        """
        self._texts = texts
        self._known = known
        self._on_rows = on_rows
        self._canonicalize = canonicalize
        self._requests = asyncio.Semaphore(MAX_REQUESTS_ENCODING)
        self._context = (
            contextvars.copy_context()
        )  # of no request: others may wait for what one has started
        self._pending: dict[RowKey, asyncio.Task[dict[RowKey, FloatArray]]] = {}
        self._unfinished: dict[RowKey, FloatArray] = {}

    async def registered(self, vocabulary: TagVocabulary, banks: Iterable[TagBank]) -> TagBank:
        """Return the bank of a registered vocabulary: the stored one, or one built from known rows
        and new ones.

        What was encoded before a failure is kept, and the next try goes on from there.

        Raises:
            ServiceError: The TextEncoder does not answer.
            InvalidRequest: A name is too long for the checkpoint.
            ConfigError: Two names are the same text to the checkpoint.
        """
        stored = await asyncio.to_thread(self._known.stored, vocabulary)
        if stored is not None:
            return stored
        await self._check_told_apart(vocabulary)
        found = self._unfinished | await asyncio.to_thread(
            self._known.find, row_keys(vocabulary), list(banks)
        )
        async for new in self._encode(
            missing_rows(vocabulary, found), VOCABULARY_TIMEOUT_S, refuse_cut=True
        ):
            self._unfinished |= new
            found |= new
        bank = await asyncio.to_thread(self._known.keep, vocabulary, found)
        self._unfinished.clear()
        return bank

    async def for_request(self, vocabulary: TagVocabulary) -> TagBank:
        """Return the bank of labels that came with a request; labels that are one text have one
        row.

        Raises:
            ServiceError: The TextEncoder does not answer.
        """
        shared = shared_rows(row_keys(vocabulary), self._canonicalize)
        rows = await self.rows(list(dict.fromkeys(shared.values())))
        bank = assemble_bank(
            vocabulary, {key: rows[same] for key, same in shared.items()}, self._known.encoder
        )
        return with_equal_rows(bank)

    async def _check_told_apart(self, vocabulary: TagVocabulary) -> None:
        prompts = naming_prompts(vocabulary)
        digests: list[bytes] = []
        for start in range(0, len(prompts), DIGESTS_PER_CALL):
            part = prompts[start : start + DIGESTS_PER_CALL]
            digests += await self._texts("digests", part, timeout_s=VOCABULARY_TIMEOUT_S)
        raise_problems(same_text_problems(vocabulary, digests))

    async def rows(self, keys: Sequence[RowKey]) -> dict[RowKey, FloatArray]:
        """Return rows that a request needs, encoding those that are new; what others have asked for
        already is waited for.

        Raises:
            ServiceError: The TextEncoder does not answer.
        """
        rows = self._known.cached(keys)
        missing = [key for key in dict.fromkeys(keys) if key not in rows]
        new = [key for key in missing if key not in self._pending]
        self._on_rows(len(rows) + len(missing) - len(new), len(new))
        if new:
            task = asyncio.create_task(self._encode_for_request(new), context=self._context.copy())
            self._pending |= dict.fromkeys(new, task)
            task.add_done_callback(lambda _: [self._pending.pop(key) for key in new])
        for task in {self._pending[key]: None for key in missing}:
            rows |= await asyncio.shield(task)  # others may wait for it too
        return rows

    async def _encode_for_request(self, keys: Sequence[RowKey]) -> dict[RowKey, FloatArray]:
        async with self._requests:
            rows: dict[RowKey, FloatArray] = {}
            async for new in self._encode(keys, None, refuse_cut=False):
                self._known.remember(new)
                rows |= new
            return rows

    async def _encode(
        self, keys: Sequence[RowKey], timeout_s: float | None, refuse_cut: bool
    ) -> AsyncIterator[dict[RowKey, FloatArray]]:
        """Yield rows as they are encoded, part by part."""
        for part in _in_parts(keys):
            prompts = [prompt for key in part for prompt in prompts_of(key)]
            calls = [
                prompts[start : start + PROMPTS_PER_CALL]
                for start in range(0, len(prompts), PROMPTS_PER_CALL)
            ]
            embeds = [
                await self._texts("encode", call, refuse_cut, timeout_s=timeout_s) for call in calls
            ]
            yield mean_rows(part, np.concatenate(embeds))


def _in_parts(keys: Sequence[RowKey]) -> Iterator[Sequence[RowKey]]:
    """Yield rows in parts of about `PROMPTS_PER_CALL` prompts, each row whole."""
    start = prompts = 0
    for at, (templates, _) in enumerate(keys):
        size = max(1, len(templates))
        if prompts and prompts + size > PROMPTS_PER_CALL:
            yield keys[start:at]
            start = at
            prompts = 0
        prompts += size
    if start < len(keys):
        yield keys[start:]
