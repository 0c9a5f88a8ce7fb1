"""Tag banks: the text embeddings of a whole vocabulary, which image embeddings are compared with.

Not here: building banks (`pipeline/banks.py`), storing them (`bank_store.py`), what scores mean
(`scores.py`, `selection.py`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.scoring import pair_logits
from serve_app.siglip.weights import SimilarityHead
from serve_app.tagging.calibration import Calibration
from serve_app.tagging.prompts import render_prompts
from serve_app.tagging.scores import PooledLogits, best_names, pool_views
from serve_app.tagging.selection import (
    ChosenTags,
    SelectionRule,
    TagScore,
    choose_tags,
    select_tags,
)
from serve_app.tagging.tag_table import IntArray, TagTable
from serve_app.tagging.vocabulary import TagVocabulary

RowKey = tuple[tuple[str, ...], str]
"""Key of a row of text embeddings: the templates, and the name in them.

A background prompt has no templates.
"""


@dataclass(frozen=True, eq=False)
class TagBank:
    """A vocabulary and its embeddings.

    Attributes:
        vocabulary: T tags with R names, and G background prompts.
        text_embeds: (R + G, D) float32, in the order of `names` and `background_prompts`.
        encoder: Fingerprint of the encoder.
        equal_rows: (R + G) the first row that each row is equal to, if some are equal. A matrix
            product gives equal rows logits that differ in the last bit, so they share one logit.
    """

    vocabulary: TagVocabulary
    text_embeds: FloatArray
    encoder: str = ""
    equal_rows: IntArray | None = None

    @property
    def nbytes(self) -> int:
        """Size of the embeddings in bytes."""
        return self.text_embeds.nbytes

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change with the checkpoint, its tokenizer and the vocabulary."""
        return bank_fingerprint(self.vocabulary, self.encoder)

    @cached_property
    def table(self) -> TagTable:
        """The vocabulary's arrays, without a calibration."""
        return TagTable(self.vocabulary)

    def rows(self) -> dict[RowKey, FloatArray]:
        """Return the embeddings by their keys, to build the bank of another vocabulary."""
        return dict(zip(row_keys(self.vocabulary), self.text_embeds, strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class ScoredBank:
    """A bank with its name in requests and, in the table, the calibration that it is scored by."""

    name: str | None
    bank: TagBank
    table: TagTable


def scored_bank(
    bank: TagBank, name: str | None = None, calibration: Calibration | None = None
) -> ScoredBank:
    """Return a bank ready to score with."""
    return ScoredBank(
        name, bank, bank.table if calibration is None else TagTable(bank.vocabulary, calibration)
    )


def bank_fingerprint(vocabulary: TagVocabulary, encoder: str) -> str:
    """Return what `TagBank.fingerprint` will be, before anything is encoded."""
    return hashlib.sha256(f"{encoder}\n{vocabulary.fingerprint}".encode()).hexdigest()[:16]


def row_keys(vocabulary: TagVocabulary) -> list[RowKey]:
    """Return the keys of a vocabulary's rows: R names, then G background prompts."""
    templates = vocabulary.prompt_templates
    return [
        *((templates, name) for name in vocabulary.names),
        *(((), prompt) for prompt in vocabulary.background_prompts),
    ]


def prompts_of(key: RowKey) -> list[str]:
    """Return the prompts that a row is the mean of."""
    templates, name = key
    return render_prompts([name], templates) if templates else [name]


def mean_rows(keys: Sequence[RowKey], prompt_embeds: FloatArray) -> dict[RowKey, FloatArray]:
    """Average each row's prompts.

    The mean is not normalised, so a logit is the mean of the prompts' logits. Scaled back to unit
    norm, every logit would rise, by 0.55 if prompts have a cosine of 0.90 to each other, and
    thresholds would no longer hold.

    Args:
        keys: Keys of the rows.
        prompt_embeds: (n, D) float32, unit norm: all of the first row's `prompts_of`, then all of
            the second's.
    """
    counts = np.array([max(1, len(templates)) for templates, _ in keys])
    starts = np.cumsum(counts) - counts
    if (counts == 1).all():
        return dict(zip(keys, np.asarray(prompt_embeds, np.float32), strict=True))
    return {
        key: prompt_embeds[start : start + count].mean(axis=0)
        for key, start, count in zip(keys, starts, counts, strict=True)
    }


def assemble_bank(
    vocabulary: TagVocabulary, rows: Mapping[RowKey, FloatArray], encoder: str
) -> TagBank:
    """Stack the rows of a vocabulary into its bank."""
    return TagBank(
        vocabulary,
        np.stack([rows[key] for key in row_keys(vocabulary)]).astype(np.float32, copy=False),
        encoder,
    )


def with_equal_rows(bank: TagBank) -> TagBank:
    """Return a request's bank with equal rows marked: its labels may be one text to the model."""
    first: dict[bytes, int] = {}
    places = [first.setdefault(row.tobytes(), i) for i, row in enumerate(bank.text_embeds)]
    if len(first) == len(places):
        return bank
    return replace(bank, equal_rows=np.array(places, np.intp))


def tag_embeddings(
    image_embeds: FloatArray,
    scored: ScoredBank,
    head: SimilarityHead,
    rule: SelectionRule,
    views: Sequence[int] | None = None,
) -> list[tuple[TagScore, ...]]:
    """Score images against one tag bank and choose their tags; see `choose_for_embeddings`."""
    tags, background = _tag_logits(image_embeds, scored, head, views)
    return select_tags(tags.compared, scored.table, rule, background, tags.raw)


def choose_for_embeddings(
    image_embeds: FloatArray,
    scored: ScoredBank,
    head: SimilarityHead,
    rule: SelectionRule,
    views: Sequence[int] | None = None,
) -> ChosenTags:
    """Score images against one tag bank and choose their tags, as columns.

    Args:
        image_embeds: (V, D) float32, unit norm: every view of every image, whole images first.
        scored: T tags and their embeddings.
        head: The checkpoint's temperature and bias.
        rule: How tags are chosen.
        views: B numbers of views; None where each image has one.
    """
    tags, background = _tag_logits(image_embeds, scored, head, views)
    return choose_tags(tags.compared, scored.table, rule, background, tags.raw)


def _tag_logits(
    image_embeds: FloatArray, scored: ScoredBank, head: SimilarityHead, views: Sequence[int] | None
) -> tuple[PooledLogits, FloatArray]:
    """Return each tag's best logit (B, T), and those of the background prompts (B, G)."""
    logits = pair_logits(image_embeds, scored.bank.text_embeds, head.logit_scale, head.logit_bias)
    if scored.bank.equal_rows is not None:
        logits = logits[:, scored.bank.equal_rows]
    tags = best_names(logits, scored.table)
    background = logits[:, len(scored.bank.vocabulary.names) :]
    if views is None:
        return PooledLogits(tags, tags), background
    return pool_views(tags, views), pool_views(background, views).compared
