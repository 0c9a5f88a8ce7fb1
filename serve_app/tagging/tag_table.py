"""A vocabulary as arrays: thresholds, biases, calibrated lines, categories, ancestors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidRequest
from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.calibration import Calibration, Fit
from serve_app.tagging.confidence import min_score_of, min_scores_of
from serve_app.tagging.vocabulary import TagVocabulary, canonical_name, loose_name
from serve_app.untrusted.problems import label_hint, nearest

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.intp]
MAX_MASKS = 64
"""Lists of labels and categories whose masks are cached for one vocabulary."""


@dataclass(frozen=True)
class CalibratedLines:
    """`scale` and `offset` (T,) float32 of every tag, and its minimum calibrated logit (T,)."""

    scale: FloatArray
    offset: FloatArray
    min_scores: FloatArray


class TagTable:
    """The arrays of one vocabulary with its calibration; made once, shared by every request."""

    def __init__(self, vocabulary: TagVocabulary, calibration: Calibration | None = None) -> None:
        self.vocabulary = vocabulary
        self.labels = vocabulary.labels
        tags = vocabulary.tags
        self.bias: FloatArray | None = None
        if any(tag.bias for tag in tags):
            self.bias = np.array([tag.bias for tag in tags], np.float32)
        self.own_min_scores = _own_min_scores([tag.threshold for tag in tags])
        self.lines = None if calibration is None else _lines(self.labels, calibration)
        self.has_parents = any(tag.parents for tag in tags)
        owners = np.array(vocabulary.alias_owners, np.intp)
        self.alias_owners, self.alias_starts = np.unique(owners, return_index=True)
        self._masks: dict[tuple[tuple[str, ...], tuple[str, ...]], BoolArray] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def numbers_of(self, name: str) -> list[int]:
        """Return the numbers of the tags with a label or alias; none if there is no such tag.

        Case, `_` and spaces do not matter. `-` counts as a space unless another tag has exactly
        this name, because SigLIP 2 may tell `t-shirt` and `t shirt` apart. Labels of a request may
        differ only in case, so there can be several.
        """
        return (
            self._names.get(canonical_name(name)) or self._loose_names.get(loose_name(name)) or []
        )

    def nearest_name(self, name: str, cutoff: float = 0.6) -> str | None:
        """Return the known name that is most similar to a name, or None if none is similar."""
        return nearest(canonical_name(name), self._names, cutoff)

    @cached_property
    def _names(self) -> dict[str, list[int]]:
        return self._numbers_by(canonical_name)

    @cached_property
    def _loose_names(self) -> dict[str, list[int]]:
        return self._numbers_by(loose_name)

    def _numbers_by(self, form: Callable[[str], str]) -> dict[str, list[int]]:
        numbers: dict[str, list[int]] = {}
        for number, tag in enumerate(self.vocabulary.tags):
            for name in (tag.label, *tag.aliases):
                numbers.setdefault(form(name), []).append(number)
        return numbers

    @cached_property
    def alphabetical(self) -> IntArray:
        """The place of each tag (T,) in the order of the labels."""
        places = np.empty(len(self), np.intp)
        places[sorted(range(len(self)), key=lambda i: self.labels[i])] = np.arange(len(self))
        return places

    @cached_property
    def categories(self) -> dict[str, BoolArray]:
        """The tags (T,) of each category."""
        names = np.array([tag.category or "" for tag in self.vocabulary.tags])
        return {str(name): names == name for name in np.unique(names) if name}

    @cached_property
    def ancestors(self) -> tuple[IntArray, IntArray, IntArray]:
        """Every tag's parents, their parents and so on, in one array.

        These are the start of each tag's ancestors (T,), their number (T,), and all of them.
        """
        number = {label: i for i, label in enumerate(self.labels)}
        parents = [[number[parent] for parent in tag.parents] for tag in self.vocabulary.tags]
        above: list[list[int]] = []
        for own in parents:
            found = dict.fromkeys(own)
            pending = list(own)
            while pending:
                new = [parent for parent in parents[pending.pop()] if parent not in found]
                found |= dict.fromkeys(new)
                pending += new
            above.append(list(found))
        counts = np.array([len(one) for one in above], np.intp)
        return (
            np.cumsum(counts) - counts,
            counts,
            np.array([ancestor for one in above for ancestor in one], np.intp),
        )

    def mask(
        self, labels: tuple[str, ...], categories: tuple[str, ...], field: str, strict: bool
    ) -> BoolArray:
        """Return the tags (T,) that some labels, aliases and categories name.

        Raises:
            InvalidRequest: `strict`, and one of them is not in this vocabulary; names the nearest.
        """
        if strict:
            self._check_known(labels, categories, field)
        mask = self._masks.get((labels, categories))
        if mask is None:
            mask = np.zeros(len(self), np.bool_)
            mask[[number for label in labels for number in self.numbers_of(label)]] = True
            for category in categories:
                mask |= self.categories.get(category, False)
            if len(self._masks) >= MAX_MASKS:
                self._masks.clear()
            self._masks[labels, categories] = mask
        return mask

    def _check_known(
        self, labels: tuple[str, ...], categories: tuple[str, ...], field: str
    ) -> None:
        for label in labels:
            if not self.numbers_of(label):
                hint = label_hint(self.nearest_name(label, cutoff=0.5))
                raise InvalidRequest(
                    f"{field}_labels: {label[:60]!r} is not in the vocabulary{hint}"
                )
        for category in categories:
            if category not in self.categories:
                hint = label_hint(nearest(category, self.categories))
                raise InvalidRequest(
                    f"{field}_categories: {category[:60]!r} is no category of it{hint}"
                )


def _own_min_scores(thresholds: Sequence[float | None]) -> FloatArray | None:
    """Return the minimum score (T,) of each tag, NaN for none; None if no tag has a threshold."""
    if all(threshold is None for threshold in thresholds):
        return None
    return min_scores_of([np.nan if threshold is None else threshold for threshold in thresholds])


def _lines(labels: tuple[str, ...], calibration: Calibration) -> CalibratedLines:
    fits: list[Fit] = [calibration.tags.get(label, calibration.pooled) for label in labels]
    general = min_score_of(calibration.threshold)
    own = _own_min_scores([fit.threshold for fit in fits])
    min_scores = np.full(len(fits), general, np.float32)
    return CalibratedLines(
        np.array([fit.scale for fit in fits], np.float32),
        np.array([fit.offset for fit in fits], np.float32),
        min_scores if own is None else np.where(np.isnan(own), min_scores, own),
    )
