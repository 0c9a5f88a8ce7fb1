"""What selection needs to know of a vocabulary, as arrays: thresholds, biases, calibrated lines, categories, ancestors."""

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidRequest
from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.calibration import Calibration, Fit
from serve_app.tagging.vocabulary import TagVocabulary, canonical_name

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.intp]
MAX_MASKS = 64
"""Of lists of labels and categories that are remembered for one vocabulary."""
LOGIT_OF_ONE = 16.64
"""The logit from which a float32 sigmoid is 1: what a threshold of 1 asks for."""


def logit_of(probability: float) -> float:
    """Return the logit whose sigmoid is a probability; minus infinity for 0, `LOGIT_OF_ONE` for 1."""
    if probability <= 0:
        return -math.inf
    return min(LOGIT_OF_ONE, math.log(probability) - math.log1p(-probability)) if probability < 1 else LOGIT_OF_ONE


@dataclass(frozen=True)
class CalibratedLines:
    """`scale` and `offset` (T,) float32 of every tag, and its least calibrated logit (T,)."""

    scale: FloatArray
    offset: FloatArray
    least: FloatArray


class TagTable:
    """The arrays of one vocabulary with its calibration; made once, shared by every request."""

    def __init__(self, vocabulary: TagVocabulary, calibration: Calibration | None = None) -> None:
        self.vocabulary = vocabulary
        self.labels = vocabulary.labels
        tags = vocabulary.tags
        self.bias = np.array([tag.bias for tag in tags], np.float32) if any(tag.bias for tag in tags) else None
        own = [math.nan if tag.threshold is None else logit_of(tag.threshold) for tag in tags]
        self.own_least = None if all(math.isnan(value) for value in own) else np.array(own, np.float32)
        self.lines = None if calibration is None else _lines(self.labels, calibration)
        self.has_parents = any(tag.parents for tag in tags)
        owners = np.array(vocabulary.alias_owners, np.intp)
        self.alias_owners, self.alias_starts = np.unique(owners, return_index=True)
        self._masks: dict[tuple[tuple[str, ...], tuple[str, ...]], BoolArray] = {}

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each tag, by the canonical form of its label and of its aliases."""
        return {name: numbers[0] for name, numbers in self._places.items()}

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        """The same for labels of requests, of which several may have one canonical form."""
        places: dict[str, list[int]] = {}
        for at, tag in enumerate(self.vocabulary.tags):
            for name in (tag.label, *tag.aliases):
                places.setdefault(canonical_name(name), []).append(at)
        return places

    @cached_property
    def alphabetical(self) -> IntArray:
        """The place of each tag (T,) in the order of the labels."""
        places = np.empty(len(self), np.intp)
        places[sorted(range(len(self)), key=lambda at: self.labels[at])] = np.arange(len(self))
        return places

    @cached_property
    def categories(self) -> dict[str, BoolArray]:
        """For each category which tags (T,) are in it."""
        names = np.array([tag.category or "" for tag in self.vocabulary.tags])
        return {str(name): names == name for name in np.unique(names) if name}

    @cached_property
    def ancestors(self) -> tuple[IntArray, IntArray, IntArray]:
        """Every tag's parents, their parents and so on: where each tag's begin (T,), how many they are (T,), and all of them."""
        number = {label: at for at, label in enumerate(self.labels)}
        parents = [[number[parent] for parent in tag.parents] for tag in self.vocabulary.tags]
        above: list[list[int]] = []
        for own in parents:
            found, pending = dict.fromkeys(own), list(own)
            while pending:
                new = [parent for parent in parents[pending.pop()] if parent not in found]
                found |= dict.fromkeys(new)
                pending += new
            above.append(list(found))
        counts = np.array([len(one) for one in above], np.intp)
        return np.cumsum(counts) - counts, counts, np.array([at for one in above for at in one], np.intp)

    def mask(self, labels: tuple[str, ...], categories: tuple[str, ...], field: str, strict: bool) -> BoolArray:
        """Return which tags (T,) some labels, aliases and categories name.

        Raises:
            InvalidRequest: `strict`, and one of them is not in this vocabulary; names the nearest.
        """
        if strict:
            self._check_known(labels, categories, field)
        mask = self._masks.get((labels, categories))
        if mask is None:
            mask = np.zeros(len(self), np.bool_)
            mask[[at for label in labels for at in self._places.get(canonical_name(label), ())]] = True
            for category in categories:
                mask |= self.categories.get(category, False)
            if len(self._masks) >= MAX_MASKS:
                self._masks.clear()
            self._masks[labels, categories] = mask
        return mask

    def _check_known(self, labels: tuple[str, ...], categories: tuple[str, ...], field: str) -> None:
        for label in labels:
            if canonical_name(label) not in self._places:
                hint = _nearest(canonical_name(label), self._places)
                raise InvalidRequest(f"{field}_labels: {label[:60]!r} is not in the vocabulary{hint}")
        for category in categories:
            if category not in self.categories:
                raise InvalidRequest(f"{field}_categories: {category[:60]!r} is no category of it{_nearest(category, self.categories)}")


def _lines(labels: tuple[str, ...], calibration: Calibration) -> CalibratedLines:
    general = logit_of(calibration.threshold)
    fits: list[Fit] = [calibration.tags.get(label, calibration.pooled) for label in labels]
    least = [general if fit.threshold is None else logit_of(fit.threshold) for fit in fits]
    return CalibratedLines(
        np.array([fit.scale for fit in fits], np.float32), np.array([fit.offset for fit in fits], np.float32), np.array(least, np.float32)
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else "."
