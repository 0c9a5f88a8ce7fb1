"""Choosing the tags of images: thresholds, filters, parents and children, order.

Everything is done for a whole batch at once; 10,000 tags of 32 images take a few milliseconds
(bench/LOG.md).

Not here: what a score is (`scores.py`), what a request may ask for (`options.py`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.choices import Parents, Score, SortBy
from serve_app.tagging.confidence import confidences_of, min_score_of
from serve_app.tagging.scores import in_score, softmax_logits
from serve_app.tagging.tag_table import BoolArray, IntArray, TagTable

SUPPRESS_WITHIN = 1.0
"""Logits by which a parent may exceed its child and still be redundant beside it."""
OWN_THRESHOLDS = ("sigmoid", "logit", "calibrated")
"""Scores that a tag's own threshold holds for; margins and shares are on other scales."""


class TagScore(NamedTuple):
    """One tag of one image: its confidence, and the model's own logit.

    A tuple, because hundreds of them cross processes every second and a frozen dataclass takes
    seven times as long to unpickle.
    """

    label: str
    confidence: float
    logit: float

    @property
    def raw_score(self) -> float:
        """The logit, by its name in responses and in the client."""
        return self.logit


@dataclass(frozen=True, slots=True)
class SelectionRule:
    """How tags are chosen.

    Attributes:
        confidence_threshold: Minimum confidence, in [0, 1], of tags without a threshold.
        max_tags: Maximum number of tags.
        sort_by: Order of the tags.
        score: What is compared with thresholds.
        min_tags: Number of best tags that are chosen even below their thresholds.
        parents: Whether a parent's score is at least its children's, or a parent is left out beside
            its child; see `_with_parents`.
        for_all: Whether the threshold replaces the tags' own, because a request has it.
        allowed: (T,) which tags may be chosen; None for all.
    """

    confidence_threshold: float
    max_tags: int
    sort_by: SortBy = "confidence"
    score: Score = "sigmoid"
    min_tags: int = 0
    parents: Parents = "independent"
    for_all: bool = False
    allowed: BoolArray | None = None


class ChosenTags(NamedTuple):
    """The tags of B images as columns, image after image, each image's in the requested order.

    Attributes:
        counts: (B,) number of tags of each image.
        tags: (K,) indices of tags in the vocabulary, K the sum of `counts`.
        confidences: (K,) float32, see `confidence.py`; for `score: logit` the scores themselves.
        logits: (K,) float32, the model's own logits, of the view that the score is of.
    """

    counts: IntArray
    tags: IntArray
    confidences: FloatArray
    logits: FloatArray


def select_tags(
    logits: FloatArray,
    table: TagTable,
    rule: SelectionRule,
    background: FloatArray | None = None,
    raw: FloatArray | None = None,
) -> list[tuple[TagScore, ...]]:
    """Choose the tags of each image; see `choose_tags`."""
    chosen = choose_tags(logits, table, rule, background, raw)
    labels = [table.labels[tag] for tag in chosen.tags.tolist()]
    every = [
        TagScore(*values)
        for values in zip(labels, chosen.confidences.tolist(), chosen.logits.tolist(), strict=True)
    ]
    ends = np.cumsum(chosen.counts).tolist()
    return [tuple(every[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def choose_tags(
    logits: FloatArray,
    table: TagTable,
    rule: SelectionRule,
    background: FloatArray | None = None,
    raw: FloatArray | None = None,
) -> ChosenTags:
    """Choose the tags of each image.

    Args:
        logits: (B, T) the logits that are compared, one for each tag.
        table: The vocabulary's arrays.
        rule: How tags are chosen.
        background: (B, G) logits of the background prompts, for `score: margin`.
        raw: (B, T) the model's own logits, if `logits` were lowered (see `pool_views`).

    Raises:
        InvalidRequest: The vocabulary does not have what the score needs.
    """
    scores = rule_scores(logits, table, rule, background)
    passing = scores >= min_scores(table, rule)
    if rule.allowed is not None:
        passing &= rule.allowed
    before = passing
    if rule.parents != "independent" and table.has_parents:
        scores, passing = _with_parents(scores, passing, table, rule)
    if rule.min_tags:
        left_out = before & ~passing  # parents beside their children stay left out
        passing = passing | _fill(scores, passing, left_out, rule)
    return _columns(passing, scores, logits if raw is None else raw, table, rule)


def rule_scores(
    logits: FloatArray, table: TagTable, rule: SelectionRule, background: FloatArray | None
) -> FloatArray:
    """Return the scores (B, T) that a rule compares with thresholds; see `choose_tags`.

    Raises:
        InvalidRequest: The vocabulary does not have what the score needs.
    """
    scores = in_score(logits, background, table, rule.score)
    if rule.score != "softmax":
        return scores
    if rule.allowed is not None:
        scores = np.where(rule.allowed, scores, np.float32(-np.inf))
    return softmax_logits(scores)


def min_scores(table: TagTable, rule: SelectionRule) -> FloatArray:
    """Return the minimum score of each tag (T,) as a logit; see `confidence.py`.

    A request's threshold comes first, then the tag's own in the vocabulary, that of its
    calibration, and the general one.
    """
    found = np.full(len(table), min_score_of(rule.confidence_threshold), np.float32)
    if rule.for_all:
        return found
    if rule.score == "calibrated" and table.lines is not None:
        found = table.lines.min_scores
    if rule.score in OWN_THRESHOLDS and table.own_min_scores is not None:
        found = np.where(np.isnan(table.own_min_scores), found, table.own_min_scores)
    return found


def _with_parents(
    scores: FloatArray, passing: BoolArray, table: TagTable, rule: SelectionRule
) -> tuple[FloatArray, BoolArray]:
    """Give parents their children's scores, or leave out parents that are redundant.

    `propagate`: a parent is chosen with every child that is chosen, whatever the parent's own
    threshold. That threshold guards against the model's mistakes about the parent. Here the
    evidence is the child, which reached its own threshold, and a sparrow that is no bird would be a
    contradiction. Filters still apply.

    `suppress`: a parent is left out if a descendant that is itself chosen has at most
    `SUPPRESS_WITHIN` less. Children are decided before their parents, so a tag that is left out
    suppresses nothing. `max_tags` is applied afterwards, so a smaller one gives the beginning of
    what a larger one gives.
    """
    if rule.parents == "suppress":
        return scores, _suppressed(scores, passing, table)
    rows, children, ancestors = _lineage(passing, table)
    if rule.allowed is not None:
        kept = rule.allowed[ancestors]
        rows = rows[kept]
        children = children[kept]
        ancestors = ancestors[kept]
    raised = scores.copy()
    passing = passing.copy()
    np.maximum.at(raised, (rows, ancestors), scores[rows, children])
    passing[rows, ancestors] = True
    return raised, passing


def _suppressed(scores: FloatArray, passing: BoolArray, table: TagTable) -> BoolArray:
    """Return the tags (B, T) that pass, without parents that a child makes redundant."""
    rows, children, ancestors = _lineage(passing, table)
    near = scores[rows, ancestors] <= scores[rows, children] + np.float32(SUPPRESS_WITHIN)
    rows = rows[near]
    children = children[near]
    ancestors = ancestors[near]

    # a tag has more ancestors than any of its ancestors, so this order decides children first
    _, num_ancestors, _ = table.ancestors
    depths = num_ancestors[ancestors]
    order = np.argsort(-depths, kind="stable")
    level_ends = np.flatnonzero(np.diff(depths[order])) + 1

    given = passing.copy()
    for level in np.split(order, level_ends):
        said = level[given[rows[level], children[level]]]
        given[rows[said], ancestors[said]] = False
    return given


def _lineage(passing: BoolArray, table: TagTable) -> tuple[IntArray, IntArray, IntArray]:
    """Return every passing tag with each of its ancestors: images, tags, ancestors."""
    starts, counts, ancestors = table.ancestors
    rows, tags = np.nonzero(passing)
    lengths = counts[tags]
    offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return (
        np.repeat(rows, lengths),
        np.repeat(tags, lengths),
        ancestors[np.repeat(starts[tags], lengths) + offsets],
    )


def _fill(
    scores: FloatArray, passing: BoolArray, left_out: BoolArray, rule: SelectionRule
) -> BoolArray:
    """Return the best allowed tags that each image lacks for its `min_tags`."""
    filled = np.zeros(scores.shape, np.bool_)
    may = ~(passing | left_out) if rule.allowed is None else rule.allowed & ~(passing | left_out)
    for row, lacking in enumerate(rule.min_tags - passing.sum(axis=1)):
        if lacking > 0:
            filled[row, _best_of_row(scores[row], np.flatnonzero(may[row]), int(lacking))] = True
    return filled


def _ranked(scores: FloatArray, passing: BoolArray, max_tags: int) -> tuple[IntArray, IntArray]:
    """Return images and their tags, the best first; equal scores keep the vocabulary's order."""
    best = [
        _best_of_row(row, np.flatnonzero(may), max_tags)
        for row, may in zip(scores, passing, strict=True)
    ]
    return np.repeat(np.arange(len(best)), [len(tags) for tags in best]), np.concatenate(best)


def _best_of_row(scores: FloatArray, tags: IntArray, max_tags: int) -> IntArray:
    """Return at most `max_tags` of some tags of one image, the best first."""
    found = scores[tags]
    if len(tags) > max_tags:  # sort only what may be among them
        kept = np.flatnonzero(found >= np.partition(found, -max_tags)[-max_tags])
        tags = tags[kept]
        found = found[kept]
    return tags[np.argsort(-found, kind="stable")[:max_tags]]


def _columns(
    passing: BoolArray, scores: FloatArray, logits: FloatArray, table: TagTable, rule: SelectionRule
) -> ChosenTags:
    """Return each image's tags in the requested order."""
    rows, tags = _ranked(scores, passing, rule.max_tags)
    if rule.sort_by == "alphabetical":
        order = np.lexsort((table.alphabetical[tags], rows))
        rows = rows[order]
        tags = tags[order]
    found = scores[rows, tags]
    confidences = found if rule.score == "logit" else confidences_of(found)
    return ChosenTags(
        np.bincount(rows, minlength=len(scores)), tags, confidences, logits[rows, tags]
    )
