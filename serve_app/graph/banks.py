"""Builds banks in a Postprocessor: the TextEncoder encodes prompts, and requests share rows.

Not here: the building itself (`pipeline/banks.py`).
"""

import asyncio
import contextvars
from collections.abc import Callable, Sequence

import numpy as np

from serve_app.graph import metrics
from serve_app.graph.calls import InnerCalls
from serve_app.pipeline.banks import BankBuilder, EncodeRows, RowEncoder, Rows
from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.known_rows import KnownRows
from serve_app.tagging.tag_bank import RowKey

PROMPTS_PER_CALL = 64
"""Number of prompts in one call to the TextEncoder. They take a large tower some seconds on a CPU,
and the reply has 0.4 MiB."""
DIGESTS_PER_CALL = 2_000
"""Number of prompts tokenized in one call to the TextEncoder, which takes up to a second."""
VOCABULARY_TIMEOUT_S = 900.0
"""Timeout of a call for a registered vocabulary; the TextEncoder may have to start first."""
MAX_REQUESTS_ENCODING = 4
"""Maximum number of requests whose labels are encoded at the same time; the next request waits."""


class RemoteTexts:
    """Implements `Texts` by calling the TextEncoder."""

    max_prompts = PROMPTS_PER_CALL

    def __init__(self, calls: InnerCalls) -> None:
        self._calls = calls

    async def encode(self, prompts: Sequence[str], refuse_cut: bool) -> FloatArray:
        """Encode prompts; see `Texts.encode`. Registered vocabularies refuse prompts that are cut.

        Raises:
            ServiceError: The TextEncoder does not respond.
        """
        timeout_s = VOCABULARY_TIMEOUT_S if refuse_cut else None
        embeds: list[FloatArray] = []
        for start in range(0, len(prompts), PROMPTS_PER_CALL):
            part = prompts[start : start + PROMPTS_PER_CALL]
            embeds.append(await self._calls("encode", part, refuse_cut, timeout_s=timeout_s))
        return np.concatenate(embeds)

    async def digests(self, prompts: Sequence[str], encodes_next: bool) -> list[bytes]:
        """Tokenize prompts; see `Texts.digests`."""
        digests: list[bytes] = []
        for start in range(0, len(prompts), DIGESTS_PER_CALL):
            part = prompts[start : start + DIGESTS_PER_CALL]
            digests += await self._calls("digests", part, timeout_s=VOCABULARY_TIMEOUT_S)
        return digests


class SharedRows:
    """Encodes rows for requests, and each row once if several requests need it at the same time."""

    def __init__(self, encode_rows: EncodeRows, on_rows: Callable[[int, int], None]) -> None:
        """Start with no rows in progress.

        Args:
            encode_rows: Encodes rows.
            on_rows: Called with the number of rows that are already being encoded, and the number
                of rows that have to be encoded.
        """
        self._encode_rows = encode_rows
        self._on_rows = on_rows
        self._turns = asyncio.Semaphore(MAX_REQUESTS_ENCODING)
        # Serve cancels the tasks of a request when its client disconnects. Other requests may wait
        # for the same rows, so they are encoded in the context of no request.
        self._context = contextvars.copy_context()
        self._pending: dict[RowKey, asyncio.Task[Rows]] = {}

    async def rows(self, keys: Sequence[RowKey]) -> Rows:
        """Return rows, and encode those that no other request has started.

        Raises:
            ServiceError: The TextEncoder does not respond.
        """
        new = [key for key in keys if key not in self._pending]
        self._on_rows(len(keys) - len(new), len(new))
        if new:
            self._start(new)

        rows: Rows = {}
        for task in {self._pending[key]: None for key in keys}:
            rows |= await asyncio.shield(task)  # other requests may wait for it too
        return rows

    def _start(self, keys: Sequence[RowKey]) -> None:
        task = asyncio.create_task(self._encode(keys), context=self._context.copy())
        self._pending |= dict.fromkeys(keys, task)
        task.add_done_callback(lambda _: [self._pending.pop(key) for key in keys])

    async def _encode(self, keys: Sequence[RowKey]) -> Rows:
        async with self._turns:
            return await self._encode_rows(keys)


class RowTally:
    """Counts the rows that requests need."""

    def __init__(self) -> None:
        self._rows = metrics.text_rows()

    def note(self, hits: int, misses: int) -> None:
        """Count rows that are cached or in progress, and rows that have to be encoded."""
        for result, count in (("hit", hits), ("miss", misses)):
            if count:
                self._rows.inc(count, tags={"result": result})


def bank_builder(
    calls: InnerCalls,
    known: KnownRows,
    canonicalize: Callable[[str], str] = str,
    on_rows: Callable[[int, int], None] = lambda hits, misses: None,
) -> BankBuilder:
    """Return the bank builder of a Postprocessor.

    Args:
        calls: Calls to the TextEncoder.
        known: Cached and stored rows.
        canonicalize: Returns a prompt as the checkpoint's tokenizer sees it.
        on_rows: Called with the number of a request's rows that are cached or in progress, and the
            number of rows that have to be encoded.
    """
    encoder = RowEncoder(RemoteTexts(calls), known)
    shared = SharedRows(encoder.for_request, on_rows)
    return BankBuilder(encoder, canonicalize, shared.rows, asyncio.to_thread, on_rows)
