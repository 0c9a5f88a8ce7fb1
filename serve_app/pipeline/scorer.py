"""`Scorer`: the banks of one configuration and of its requests, and what a request is scored by.

One process and the graph use the same scorer. It encodes and stores through a `BankBuilder`.

Not here: the arithmetic (`tagging/tag_bank.py`), limits on the size of a response
(`bounded_tags.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from serve_app.pipeline.banks import BankBuilder
from serve_app.siglip.checkpoints import Checkpoint
from serve_app.siglip.identity import checkpoint_fingerprint
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.scoring import check_width
from serve_app.siglip.text import canonicalize_text
from serve_app.siglip.weights import SimilarityHead, read_similarity_head
from serve_app.tagging.byte_cache import ByteCache
from serve_app.tagging.choices import Score
from serve_app.tagging.options import RequestedVocabulary, TagOptions
from serve_app.tagging.same_text import check_words
from serve_app.tagging.selection import SelectionRule, TagScore
from serve_app.tagging.settings import TagSettings
from serve_app.tagging.tag_bank import ScoredBank, TagBank, scored_bank, tag_embeddings

BANKS_SHARE = 4
"""Fraction of the cache (1/N) for whole banks of requests; the rest holds their rows."""
BYTES_PER_TAG = 1024
"""Memory of a request's bank for each tag, besides its embeddings: objects, tables and the key."""


class ScoredBy(NamedTuple):
    """What an image was scored against.

    Attributes:
        vocabulary: Name of a registered vocabulary; None for labels that came with the request.
        vocabulary_fingerprint: Changes with the checkpoint, the labels and the templates.
        score: What its confidences are.
        include_raw_scores: Whether the response has logits.
    """

    vocabulary: str | None
    vocabulary_fingerprint: str
    score: Score
    include_raw_scores: bool


@dataclass(frozen=True, slots=True)
class ScoredCheckpoint:
    """What scoring needs of a checkpoint.

    Attributes:
        fingerprint: Identifies the checkpoint; a calibration holds for one fingerprint.
        width: D of its embeddings.
        head: Its temperature and bias.
        strips_punctuation: Whether its tokenizer drops punctuation.
    """

    fingerprint: str
    width: int
    head: SimilarityHead
    strips_punctuation: bool

    @property
    def canonicalize(self) -> Callable[[str], str]:
        """Returns a prompt as the tokenizer sees it."""
        return partial(canonicalize_text, strip_punctuation=self.strips_punctuation)


def rows_share(cache_bytes: int) -> int:
    """Return the bytes of a cache that are for rows."""
    return cache_bytes - cache_bytes // BANKS_SHARE


def read_scored_checkpoint(checkpoint: Checkpoint) -> ScoredCheckpoint:
    """Read what scoring needs of a checkpoint; raises `ConfigError` if it cannot be read."""
    return ScoredCheckpoint(
        checkpoint_fingerprint(checkpoint),
        checkpoint.embedding_width,
        read_similarity_head(checkpoint.folder),
        checkpoint.strips_punctuation,
    )


@dataclass(frozen=True, slots=True)
class TagScoring:
    """How the images of one request are scored: its bank, its rule, and what is reported of it."""

    scored: ScoredBank
    head: SimilarityHead
    rule: SelectionRule
    by: ScoredBy

    def tag(
        self, image_embeds: FloatArray, views: Sequence[int] | None = None
    ) -> list[tuple[TagScore, ...]]:
        """Return the tags of embeddings (V, D) float32, unit norm; see `tag_embeddings`."""
        check_width(image_embeds, self.scored.bank.text_embeds.shape[1])
        return tag_embeddings(image_embeds, self.scored, self.head, self.rule, views)


class Scorer:
    """The vocabularies of one configuration, and those that its requests bring."""

    def __init__(
        self,
        settings: TagSettings,
        checkpoint: ScoredCheckpoint,
        builder: BankBuilder,
        max_labels: int,
        cache_bytes: int,
    ) -> None:
        """Start without banks.

        Args:
            settings: The configuration.
            checkpoint: The checkpoint.
            builder: Builds banks.
            max_labels: Limit on the labels of one request.
            cache_bytes: Size of the whole cache, of which `BANKS_SHARE` is for banks.

        Raises:
            ConfigError: A calibration was fitted for another checkpoint.
        """
        for name, registered in settings.vocabularies.items():
            if registered.calibration is not None:
                registered.calibration.check_checkpoint(checkpoint.fingerprint, name)
        self.settings = settings
        self._checkpoint = checkpoint
        self._builder = builder
        self._max_labels = max_labels
        self._registered: dict[str, ScoredBank] = {}
        self._requested = ByteCache[RequestedVocabulary, ScoredBank](
            cache_bytes // BANKS_SHARE, _bank_bytes
        )

    @property
    def banks(self) -> list[TagBank]:
        """The banks of registered vocabularies that are built."""
        return [scored.bank for scored in self._registered.values()]

    async def registered(self, name: str, earlier: Sequence[TagBank] = ()) -> ScoredBank:
        """Return the bank of a registered vocabulary, and build it first if it is new.

        Args:
            name: Name of the vocabulary.
            earlier: Banks of the last configuration, which are reused.

        Raises:
            TaggerError: See `BankBuilder.registered`.
            InvalidRequest: The checkpoint reads nothing of a name.
        """
        if name not in self._registered:
            registered = self.settings.vocabularies[name]
            vocabulary = registered.vocabulary
            check_words(vocabulary, self._checkpoint.strips_punctuation)
            loaded = [*earlier, *self.banks]
            bank = next((bank for bank in loaded if bank.vocabulary == vocabulary), None)
            if bank is None:
                bank = await self._builder.registered(vocabulary, loaded)
            self._registered[name] = scored_bank(bank, name, registered.calibration)
        return self._registered[name]

    async def every_registered(self, earlier: Sequence[TagBank] = ()) -> dict[str, ScoredBank]:
        """Return the banks of all registered vocabularies; see `registered`."""
        return {name: await self.registered(name, earlier) for name in self.settings.vocabularies}

    async def bank_for(self, requested: RequestedVocabulary) -> ScoredBank:
        """Return the bank that a request is scored against, and encode what is new in it.

        Raises:
            UnknownVocabulary: The request names a vocabulary that is not loaded.
            InvalidRequest: The labels or templates cannot work with this checkpoint.
            ServiceError: The prompts could not be encoded.
        """
        if requested.is_registered:
            return await self.registered(self.settings.name_of(requested))
        scored = self._requested.get(requested)
        if scored is not None:
            self._builder.on_rows(len(scored.table), 0)
            return scored

        vocabulary = self.settings.own_vocabulary(requested, self._max_labels)
        check_words(vocabulary, self._checkpoint.strips_punctuation)
        name = None if requested.labels is not None else self.settings.name_of(requested)
        scored = scored_bank(await self._builder.requested(vocabulary), name)
        self._requested.put(requested, scored)
        return scored

    async def scoring_for(self, options: TagOptions) -> TagScoring:
        """Return how a request's images are scored.

        Raises:
            TaggerError: See `bank_for`.
            InvalidRequest: An option is out of bounds, or names what the vocabulary does not have.
        """
        scored = await self.bank_for(options.vocabulary)
        rule = self.settings.rule_for(options, scored.table)
        by = ScoredBy(
            scored.name,
            scored.bank.fingerprint,
            rule.score,
            self.settings.shows_raw_scores(options),
        )
        return TagScoring(scored, self._checkpoint.head, rule, by)


def _bank_bytes(_: RequestedVocabulary, scored: ScoredBank) -> int:
    return scored.bank.nbytes + BYTES_PER_TAG * len(scored.table)
