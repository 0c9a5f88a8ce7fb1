"""Scores embeddings against tag banks and chooses tags. Holds the service's own vocabulary, and those of requests.

The configuration changes live: a new one is built aside, its labels encoded, and swapped in at once. One that cannot
work is refused and the last good one kept, since a `reconfigure` that raises kills the replica.
"""

import asyncio
import functools
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from ray.serve.handle import DeploymentHandle

from serve_app.errors import ServiceError, TaggerError
from serve_app.graph import metrics
from serve_app.graph.calls import InnerCalls
from serve_app.graph.messages import PostprocessorState, ScoreReply, ScoreRequest
from serve_app.live import LiveTagging
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.weights import read_similarity_head
from serve_app.tagger import TagOutcome
from serve_app.tagging.bank_cache import BankCache
from serve_app.tagging.prompts import render_prompts
from serve_app.tagging.selection import SelectionRule, tag_embeddings
from serve_app.tagging.settings import TagOptions, TagSettings
from serve_app.tagging.tag_bank import TagBank, build_tag_bank
from serve_app.tagging.vocabulary import TagVocabulary

logger = logging.getLogger(__name__)

PROMPTS_PER_CALL = 64
"""Prompts sent to a TextEncoder at once: some seconds of work for a large tower on a CPU, and an answer of 0.4 MiB."""
VOCABULARY_TIMEOUT_S = 900.0
"""For one such call when the service's own vocabulary is encoded: the TextEncoder may have to start first."""
MAX_REQUEST_BANKS = 4
"""Vocabularies of requests that are encoded at the same time; the next waits."""
RETRY_PAUSE_S = 2.0


class Postprocessor:
    """Tag banks and what is done with them."""

    def __init__(
        self, model: str, revision: str | None, max_labels: int, cache_bytes: int, timeout_s: float, texts: DeploymentHandle
    ) -> None:
        self._head = read_similarity_head(load_checkpoint(model, revision).folder)
        self._texts = InnerCalls(texts, timeout_s, metrics.inner_retries().inc)
        self._request_banks = asyncio.Semaphore(MAX_REQUEST_BANKS)
        self._max_labels = max_labels
        self._cache = BankCache(cache_bytes)
        self._encoding: dict[TagVocabulary, asyncio.Task[TagBank]] = {}
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="score")
        self._live: tuple[TagSettings, TagBank, bool] | None = None
        self._refused: str | None = None
        self._asked = 0
        self._later: asyncio.Task[None] | None = None
        self._refusals = metrics.config_refusals()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take a new `LiveTagging`, or keep the last good one if it cannot work. Raises only when there is none yet.

        If its labels cannot be encoded right now, as while the TextEncoder restarts, that is tried again until it
        works or the configuration changes once more.
        """
        self._asked += 1
        try:
            live = LiveTagging.from_user_config(user_config)
            settings = live.tag_settings()
            await self._take(live, settings)
        except ServiceError:
            if self._live is None:
                raise
            self._later = asyncio.create_task(self._take_later(live, settings, self._asked))
        except Exception as error:
            if self._live is None:
                raise
            self._refused = str(error)
            self._refusals.inc()
            logger.error("the new configuration is refused, the last one stays: %s", error)

    async def _take(self, live: LiveTagging, settings: TagSettings) -> None:
        """Build the new state aside and swap it in."""
        asked, bank = self._asked, self._live[1] if self._live else None
        if bank is None or bank.vocabulary != settings.vocabulary:
            bank = await self._encode(settings.vocabulary, VOCABULARY_TIMEOUT_S)
        if asked == self._asked:  # else a newer one came while this one's labels were encoded
            self._live, self._refused = (settings, bank, live.include_raw_scores), None

    async def _take_later(self, live: LiveTagging, settings: TagSettings, asked: int) -> None:
        while asked == self._asked:
            logger.warning("the new labels cannot be encoded yet; trying again")
            await asyncio.sleep(RETRY_PAUSE_S)
            try:
                await self._take(live, settings)
            except ServiceError:
                continue
            return

    async def score(self, request: ScoreRequest) -> ScoreReply:
        """Tag a micro-batch of embeddings, each as its own options ask."""
        settings, own_bank, include_raw_scores = self._current()
        places: dict[TagOptions, list[int]] = {}
        for at, options in enumerate(request.options):
            places.setdefault(options, []).append(at)
        outcomes: list[TagOutcome] = [()] * len(request.options)
        fingerprints = [own_bank.vocabulary.fingerprint] * len(request.options)
        for options, rows in places.items():
            found: list[TagOutcome]
            try:
                rule = settings.rule_for(options)
                bank = await self._bank_for(settings.vocabulary_for(options, self._max_labels), own_bank)
                found = await self._select(request, rows, bank, rule)
            except TaggerError as error:
                found = [error] * len(rows)
            else:
                for row in rows:
                    fingerprints[row] = bank.vocabulary.fingerprint
            for row, outcome in zip(rows, found, strict=True):
                outcomes[row] = outcome
        return ScoreReply(tuple(outcomes), tuple(fingerprints), include_raw_scores)

    async def prepare(self, options: TagOptions) -> None:
        """Encode a request's labels while its images are being encoded; problems are told by `score`."""
        settings, own_bank, _ = self._current()
        try:
            await self._bank_for(settings.vocabulary_for(options, self._max_labels), own_bank)
        except TaggerError as error:
            logger.info("labels were not prepared: %s", error.code)

    async def state(self) -> PostprocessorState:
        """Say which vocabulary is scored."""
        settings, _, _ = self._current()
        return PostprocessorState(settings.vocabulary.fingerprint, len(settings.vocabulary.labels), self._refused)

    def _current(self) -> tuple[TagSettings, TagBank, bool]:
        assert self._live is not None, "Serve calls reconfigure before it sends requests"
        return self._live

    async def _select(self, request: ScoreRequest, rows: list[int], bank: TagBank, rule: SelectionRule) -> list[TagOutcome]:
        embeds = request.image_embeds if len(rows) == len(request.options) else request.image_embeds[rows]
        work = functools.partial(tag_embeddings, embeds, bank, self._head, [rule] * len(rows))
        return list(await asyncio.get_running_loop().run_in_executor(self._executor, work))

    async def _bank_for(self, vocabulary: TagVocabulary, own: TagBank) -> TagBank:
        if vocabulary is own.vocabulary or vocabulary == own.vocabulary:
            return own
        bank = self._cache.get(vocabulary)
        if bank is not None:
            return bank
        if vocabulary not in self._encoding:  # asked by several requests at once, encoded once
            task = asyncio.create_task(self._encode_for_request(vocabulary))
            self._encoding[vocabulary] = task
            task.add_done_callback(lambda _: self._encoding.pop(vocabulary, None))
        bank = await asyncio.shield(self._encoding[vocabulary])
        self._cache.put(bank)
        return bank

    async def _encode_for_request(self, vocabulary: TagVocabulary) -> TagBank:
        async with self._request_banks:
            return await self._encode(vocabulary, None)

    async def _encode(self, vocabulary: TagVocabulary, timeout_s: float | None) -> TagBank:
        prompts = render_prompts(vocabulary.labels, vocabulary.prompt_templates)
        parts = [prompts[start : start + PROMPTS_PER_CALL] for start in range(0, len(prompts), PROMPTS_PER_CALL)]
        return build_tag_bank(vocabulary, np.concatenate([await self._texts("encode", part, timeout_s=timeout_s) for part in parts]))
