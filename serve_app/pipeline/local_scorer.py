"""`LocalScorer`: vocabularies, their banks and what is chosen, in one process, without the vision
tower.

The text tower is loaded when a prompt has to be encoded and not before, so embeddings are scored
against stored banks without any tower.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from serve_app.config.service import ServiceConfig
from serve_app.pipeline.tagger import ScoredBy
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.identity import checkpoint_fingerprint, encoder_fingerprint
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.scoring import check_width
from serve_app.siglip.text import canonicalize_text
from serve_app.siglip.weights import read_similarity_head
from serve_app.tagging.known_rows import KnownRows, missing_rows
from serve_app.tagging.problems import raise_problems
from serve_app.tagging.same_text import check_words, naming_prompts, same_text_problems, shared_rows
from serve_app.tagging.selection import TagScore
from serve_app.tagging.settings import AskedVocabulary, TagOptions
from serve_app.tagging.tag_bank import (
    RowKey,
    ScoredBank,
    TagBank,
    assemble_bank,
    mean_rows,
    prompts_of,
    row_keys,
    scored_bank,
    tag_embeddings,
    with_equal_rows,
)
from serve_app.tagging.vocabulary import TagVocabulary

if TYPE_CHECKING:
    from serve_app.towers.tower import TextTower


class LocalScorer:
    """Scores embeddings against the configuration's vocabularies, and those of requests."""

    def __init__(self, config: ServiceConfig) -> None:
        """Read the checkpoint's facts and the configuration's vocabularies; nothing is encoded yet.

        Raises:
            ConfigError: The checkpoint cannot be read, or a calibration belongs to another.
        """
        plugin = config.siglip
        self._config = config
        self.checkpoint = load_checkpoint(plugin.model_source, config.revision)
        self.fingerprint = checkpoint_fingerprint(self.checkpoint)
        self.head = read_similarity_head(self.checkpoint.folder)
        self.settings = config.tag_settings()
        for name, registered in self.settings.vocabularies.items():
            if registered.calibration is not None:
                registered.calibration.check_checkpoint(self.fingerprint, name)
        encoder = encoder_fingerprint(self.fingerprint, plugin.dtype, plugin.quantization)
        self.known = KnownRows(encoder, config.limits.max_cached_label_bytes, config.tag_banks)
        self._registered: dict[str, ScoredBank] = {}
        self.prompts_encoded = 0

    @cached_property
    def texts(self) -> "TextTower":
        """The text tower, loaded and checked."""
        from serve_app.towers.self_check import check_text_tower
        from serve_app.towers.tower import (
            TextTower,  # torch takes seconds to import, and is often not needed
        )

        tower = TextTower(self.checkpoint, self._config.siglip.precision)
        check_text_tower(tower)
        return tower

    def bank_for(self, options: TagOptions) -> ScoredBank:
        """Return the tag bank that holds for a request, encoding what is new of it.

        Raises:
            InvalidRequest: The request's labels or templates cannot work.
        """
        asked = self.settings.vocabulary_for(options, self._config.limits.max_labels_per_request)
        if asked.key is not None:
            return self._requested(asked)
        assert asked.name is not None, "only a request's own bank has a key"
        return self.registered(asked.name)

    def registered(self, name: str) -> ScoredBank:
        """Return the bank of one of the configuration's vocabularies."""
        if name not in self._registered:
            registered = self.settings.vocabularies[name]
            bank = self.known.stored(registered.vocabulary) or self._build(registered.vocabulary)
            self._registered[name] = scored_bank(bank, name, registered.calibration)
        return self._registered[name]

    def every_registered(self) -> dict[str, ScoredBank]:
        """Return the banks of all of the configuration's vocabularies."""
        return {name: self.registered(name) for name in self.settings.vocabularies}

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Return embeddings (n, D) float32, unit norm, of texts as they are."""
        keys: list[RowKey] = [((), text) for text in texts]
        rows = self.known.cached(keys)
        new = self._encode(
            [key for key in dict.fromkeys(keys) if key not in rows], refuse_cut=False
        )
        self.known.remember(new)
        rows |= new
        return np.stack([rows[key] for key in keys])

    def tag(
        self,
        image_embeds: FloatArray,
        options: TagOptions = TagOptions(),
        views: Sequence[int] | None = None,
    ) -> tuple[list[tuple[TagScore, ...]], ScoredBy]:
        """Tag embeddings (V, D) float32, unit norm; see `tag_embeddings`.

        Raises:
            InvalidRequest: The options cannot work, or D is not the checkpoint's.
        """
        check_width(image_embeds, self.checkpoint.embedding_width)
        scored = self.bank_for(options)
        rule = self.settings.rule_for(options, scored.table)
        by = ScoredBy(
            scored.name,
            scored.bank.fingerprint,
            rule.score,
            self.settings.shows_raw_scores(options),
        )
        return tag_embeddings(image_embeds, scored, self.head, rule, views), by

    def _build(self, vocabulary: TagVocabulary) -> TagBank:
        check_words(vocabulary, self.checkpoint.strips_punctuation)
        found = self.known.find(
            row_keys(vocabulary), [scored.bank for scored in self._registered.values()]
        )
        missing = missing_rows(vocabulary, found)
        raise_problems(
            same_text_problems(vocabulary, self._digests(naming_prompts(vocabulary), bool(missing)))
        )
        return self.known.keep(vocabulary, found | self._encode(missing, refuse_cut=True))

    def _digests(self, prompts: list[str], with_tower: bool) -> list[bytes]:
        """Return digests of token ids; the text tower is loaded only if it is going to be
        needed.
        """
        from serve_app.towers.tokenizer import (
            SiglipTextInputs,  # imports transformers, which takes seconds
        )

        is_loaded = "texts" in self.__dict__
        inputs = (
            self.texts.text_inputs if with_tower or is_loaded else SiglipTextInputs(self.checkpoint)
        )
        return inputs.digests(prompts)

    def _requested(self, asked: AskedVocabulary) -> ScoredBank:
        check_words(asked.vocabulary, self.checkpoint.strips_punctuation)
        shared = shared_rows(row_keys(asked.vocabulary), self._canonicalize)
        needed = list(dict.fromkeys(shared.values()))
        rows = self.known.cached(needed)
        new = self._encode([key for key in needed if key not in rows], refuse_cut=False)
        self.known.remember(new)
        rows |= new
        bank = assemble_bank(
            asked.vocabulary, {key: rows[same] for key, same in shared.items()}, self.known.encoder
        )
        return scored_bank(with_equal_rows(bank), asked.name)

    def _canonicalize(self, prompt: str) -> str:
        return canonicalize_text(prompt, self.checkpoint.strips_punctuation)

    def _encode(self, keys: list[RowKey], refuse_cut: bool) -> dict[RowKey, FloatArray]:
        prompts = [prompt for key in keys for prompt in prompts_of(key)]
        if not prompts:
            return {}
        if refuse_cut:
            self.texts.text_inputs.check_whole(prompts)
        self.prompts_encoded += len(prompts)
        return mean_rows(keys, self.texts.encode(prompts))
