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

from serve_app.errors import TaggerError
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

PROMPTS_PER_CALL = 256
"""Prompts sent to a TextEncoder at once; its answer of 256 × 1,536 floats is 1.5 MiB, below Serve's message bound."""


class Postprocessor:
    """Tag banks and what is done with them."""

    def __init__(
        self, model: str, revision: str | None, max_labels: int, cache_bytes: int, timeout_s: float, texts: DeploymentHandle
    ) -> None:
        self._head = read_similarity_head(load_checkpoint(model, revision).folder)
        self._texts = InnerCalls(texts, timeout_s)
        self._max_labels = max_labels
        self._cache = BankCache(cache_bytes)
        self._encoding: dict[TagVocabulary, asyncio.Task[TagBank]] = {}
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="score")
        self._live: tuple[TagSettings, TagBank, bool] | None = None
        self._refused: str | None = None
        self._refusals = metrics.config_refusals()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take a new `LiveTagging`, or keep the last good one if it cannot work. Raises only when there is none yet."""
        try:
            live = LiveTagging.from_user_config(user_config)
            settings = live.tag_settings()
            bank = self._live[1] if self._live else None
            if bank is None or bank.vocabulary != settings.vocabulary:
                bank = await self._encode(settings.vocabulary)
            self._live, self._refused = (settings, bank, live.include_raw_scores), None
        except Exception as error:
            if self._live is None:
                raise
            self._refused = str(error)
            self._refusals.inc()
            logger.error("the new configuration is refused, the last one stays: %s", error)

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
            task = asyncio.create_task(self._encode(vocabulary))
            self._encoding[vocabulary] = task
            task.add_done_callback(lambda _: self._encoding.pop(vocabulary, None))
        bank = await asyncio.shield(self._encoding[vocabulary])
        self._cache.put(bank)
        return bank

    async def _encode(self, vocabulary: TagVocabulary) -> TagBank:
        prompts = render_prompts(vocabulary.labels, vocabulary.prompt_templates)
        parts = [prompts[start : start + PROMPTS_PER_CALL] for start in range(0, len(prompts), PROMPTS_PER_CALL)]
        return build_tag_bank(vocabulary, np.concatenate([await self._texts("encode", part) for part in parts]))
