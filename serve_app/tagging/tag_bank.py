"""The text embeddings of a whole vocabulary: what an image embedding is compared with.

Not here: encoding the prompts (a text tower does), keeping banks on disk (`bank_store.py`), what
scores mean (`scores.py`, `selection.py`).
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
"""What a row of text embeddings follows from: the templates, and what is said in them.

A finished sentence has no templates.
"""


@dataclass(frozen=True, eq=False)
class TagBank:
    """A vocabulary and its embeddings.

    Attributes:
        vocabulary: T tags with R names, and G background prompts.
        text_embeds: (R + G, D) float32, in the order of `names` and `background_prompts`.
        encoder: Fingerprint of what encoded them.
        equal_rows: (R + G) the first row that each row is equal to, if some are equal. A matrix
            product gives equal rows logits that differ in the last bit, so they are taken from one.
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
        """Sixteen hex digits that change whenever the checkpoint, how it reads text, or what is
        scored does.
        """
        return bank_fingerprint(self.vocabulary, self.encoder)

    @cached_property
    def table(self) -> TagTable:
        """The vocabulary's arrays, without a calibration."""
        return TagTable(self.vocabulary)

    def rows(self) -> dict[RowKey, FloatArray]:
        """Return the embeddings by what they follow from, to build another vocabulary of what is
        known already.
        """
        return dict(zip(row_keys(self.vocabulary), self.text_embeds, strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class ScoredBank:
    """A bank with the calibration that it is scored by, under the name that requests know it by."""

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
    """Return what each row of a vocabulary's bank follows from: R names, then G background
    prompts.
    """
    templates = vocabulary.prompt_templates
    return [
        *((templates, name) for name in vocabulary.names),
        *(((), prompt) for prompt in vocabulary.background_prompts),
    ]


def prompts_of(key: RowKey) -> list[str]:
    """Return the finished sentences of which a row is the mean."""
    templates, said = key
    return render_prompts([said], templates) if templates else [said]


def mean_rows(keys: Sequence[RowKey], prompt_embeds: FloatArray) -> dict[RowKey, FloatArray]:
    """Average each row's prompts.

    The mean is left un-normalised: it is then the mean of the prompts' logits. Scaled back to unit
    norm, every logit would rise, by 0.55 where prompts have a cosine of 0.90 to each other, and
    thresholds would no longer hold.

    Args:
        keys: Of the rows.
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
    """Stack the rows of a vocabulary, all of which are known, into its bank."""
    return TagBank(
        vocabulary,
        np.stack([rows[key] for key in row_keys(vocabulary)]).astype(np.float32, copy=False),
        encoder,
    )


def with_equal_rows(bank: TagBank) -> TagBank:
    """Return a request's bank, which may have labels that are one text, with its equal rows
    marked.
    """
    first: dict[bytes, int] = {}
    places = [first.setdefault(row.tobytes(), i) for i, row in enumerate(bank.text_embeds)]
    return (
        bank if len(first) == len(places) else replace(bank, equal_rows=np.array(places, np.intp))
    )


def tag_embeddings(
    image_embeds: FloatArray,
    scored: ScoredBank,
    head: SimilarityHead,
    rule: SelectionRule,
    views: Sequence[int] | None = None,
) -> list[tuple[TagScore, ...]]:
    """Score images against one tag bank and choose their tags; see `choose_for_embeddings` for the
    arguments.
    """
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
        image_embeds: (V, D) float32, unit norm: every view of every image, each image's whole
            picture first.
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
