"""The settings that can change while the service runs: its vocabularies and how tags are chosen.

Not here: what one request may ask for instead (`options.py`).
"""

import json
from typing import Any, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve_app.errors import InvalidRequest, UnknownVocabulary
from serve_app.tagging.calibration import Calibration
from serve_app.tagging.choices import Parents, Score, SortBy
from serve_app.tagging.options import RequestedVocabulary, TagOptions, check_label_count
from serve_app.tagging.selection import SelectionRule
from serve_app.tagging.tag_table import BoolArray, TagTable
from serve_app.tagging.vocabulary import (
    DEFAULT_BACKGROUND,
    TagVocabulary,
    check_prompt_count,
    vocabulary_of_labels,
)
from serve_app.tagging.vocabulary_blocks import Entry
from serve_app.tagging.vocabulary_checks import check_vocabulary

Value = TypeVar("Value")


class Selection(BaseModel):
    """The `selection` block of the configuration: how tags are chosen, beyond the plugin schema.

    Attributes:
        score: What is compared with thresholds; None for `calibrated` where a vocabulary has a
            calibration, and `sigmoid` otherwise.
        min_tags: Number of best tags that are returned even below their thresholds.
        parents: How a parent's score depends on its children's.
        include_labels: Only these labels, and those of `include_categories`.
        exclude_labels: Never these labels.
        include_categories: Only labels of these categories, and `include_labels`.
        exclude_categories: Never labels of these categories.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    score: Score | None = None
    min_tags: int = Field(0, ge=0)
    parents: Parents = "independent"
    include_labels: tuple[str, ...] = ()
    exclude_labels: tuple[str, ...] = ()
    include_categories: tuple[str, ...] = ()
    exclude_categories: tuple[str, ...] = ()


NO_SELECTION = Selection()


class RegisteredVocabulary(BaseModel):
    """A vocabulary of the configuration, and the calibration that was fitted for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: TagVocabulary
    calibration: Calibration | None = None


class TagSettings(BaseModel):
    """The service's own vocabularies and selection, which are the Postprocessor's `user_config`.

    Field names and their order are those of deployed configurations. A new configuration replaces
    the whole of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    vocabularies: dict[str, RegisteredVocabulary] = Field(min_length=1)
    default_vocabulary: str
    selection: Selection = NO_SELECTION
    confidence_threshold: float = Field(ge=0, le=1)
    max_tags: int = Field(ge=1)
    sort_by: SortBy = "confidence"
    include_raw_scores: bool = False

    @classmethod
    def from_user_config(cls, user_config: dict[str, Any]) -> Self:
        """Read what Serve passes to `reconfigure`, which somebody may have written by hand.

        Raises:
            ValueError: A key or a value is not valid.
            ConfigError: The tags of a vocabulary do not fit together.
        """
        settings = cls.model_validate_json(json.dumps(user_config))
        for name, registered in settings.vocabularies.items():
            own = registered.vocabulary
            entries = [Entry(tag, name) for tag in own.tags]
            check_vocabulary(entries, own.prompt_templates, own.background_prompts, name)
        return settings

    @model_validator(mode="after")
    def _check_default(self) -> Self:
        if self.default_vocabulary not in self.vocabularies:
            raise ValueError(
                f"default_vocabulary {self.default_vocabulary!r} is none of vocabularies"
            )
        return self

    @property
    def vocabulary(self) -> TagVocabulary:
        """The default vocabulary."""
        return self.vocabularies[self.default_vocabulary].vocabulary

    def name_of(self, requested: RequestedVocabulary) -> str:
        """Return the name of the registered vocabulary that a request is based on.

        Raises:
            UnknownVocabulary: The request names one that is not loaded.
            InvalidRequest: The request has both labels and a name.
        """
        name = requested.name or self.default_vocabulary
        self.check_known(name)
        if requested.labels is not None and requested.name is not None:
            raise InvalidRequest("Give either labels or the name of a vocabulary.")
        return name

    def own_vocabulary(self, requested: RequestedVocabulary, max_labels: int) -> TagVocabulary:
        """Return the vocabulary of a request that has labels or templates of its own.

        Raises:
            UnknownVocabulary: The request names a vocabulary that is not loaded.
            InvalidRequest: There are more labels or prompts than one request may have.
        """
        base = self.vocabularies[self.name_of(requested)].vocabulary
        templates = requested.prompt_templates or base.prompt_templates
        if requested.labels is None:
            check_prompt_count(len(base.names), len(templates))
            return TagVocabulary.model_construct(
                tags=base.tags,
                prompt_templates=templates,
                background_prompts=base.background_prompts,
            )

        check_label_count(len(requested.labels), max_labels)
        check_prompt_count(len(requested.labels), len(templates))
        background = DEFAULT_BACKGROUND if requested.with_background else ()
        return vocabulary_of_labels(requested.labels, templates, background)

    def check_known(self, name: str) -> None:
        """Raise `UnknownVocabulary` for a name that is not loaded."""
        if name not in self.vocabularies:
            raise UnknownVocabulary(
                f"There is no vocabulary {name[:60]!r}; loaded are {', '.join(self.vocabularies)}."
            )

    def rule_for(self, options: TagOptions, table: TagTable) -> SelectionRule:
        """Return how tags are chosen from a vocabulary for a request.

        Raises:
            InvalidRequest: A value is out of bounds, or names what the vocabulary does not have.
        """
        threshold = _first(options.confidence_threshold, self.confidence_threshold)
        if not 0 <= threshold <= 1:
            raise InvalidRequest(
                f"confidence_threshold is {threshold}; it must lie between 0 and 1."
            )
        max_tags = _first(options.max_tags, self.max_tags)
        if max_tags < 1:
            raise InvalidRequest(f"max_tags is {max_tags}; it must be at least 1.")
        min_tags = _first(options.min_tags, min(self.selection.min_tags, max_tags))
        if not 0 <= min_tags <= max_tags:
            raise InvalidRequest(
                f"min_tags is {min_tags}; it must lie between 0 and max_tags, which is {max_tags}."
            )
        return SelectionRule(
            confidence_threshold=threshold,
            max_tags=max_tags,
            sort_by=options.sort_by or self.sort_by,
            score=options.score or self._score(table),
            min_tags=min_tags,
            parents=options.parents or self.selection.parents,
            for_all=options.confidence_threshold is not None,
            allowed=self._allowed(options, table),
        )

    def shows_raw_scores(self, options: TagOptions) -> bool:
        """Return whether the response to a request has logits."""
        return _first(options.include_raw_scores, self.include_raw_scores)

    def _score(self, table: TagTable) -> Score:
        """Return the score for requests that name none.

        A request's own vocabulary may not have what the configured score needs. It gets `sigmoid`.
        """
        wanted = self.selection.score or "calibrated"
        if wanted == "calibrated" and table.lines is None:
            return "sigmoid"
        if wanted == "margin" and not table.vocabulary.background_prompts:
            return "sigmoid"
        return wanted

    def _allowed(self, options: TagOptions, table: TagTable) -> BoolArray | None:
        """Return which tags (T,) may be returned; None for all.

        A request's includes replace the service's, and its excludes add to them. The service's own
        filters are for its vocabularies: all labels of a request are scored.
        """
        own = NO_SELECTION if options.vocabulary.labels is not None else self.selection
        included = _included(options, own, table)
        filters = (options.exclude_labels, options.exclude_categories)
        own_filters = (own.exclude_labels, own.exclude_categories)
        if not any(filters + own_filters):
            return included

        excluded = table.mask(*filters, "exclude", True) | table.mask(
            *own_filters, "exclude", False
        )
        allowed: BoolArray = ~excluded if included is None else np.logical_and(included, ~excluded)
        return allowed


def _included(options: TagOptions, own: Selection, table: TagTable) -> BoolArray | None:
    """Return which tags (T,) are included by a filter; None if there is no filter."""
    if options.include_labels or options.include_categories:
        return table.mask(options.include_labels, options.include_categories, "include", True)
    if not (own.include_labels or own.include_categories):
        return None
    included = table.mask(own.include_labels, own.include_categories, "include", False)
    # a filter that matches nothing is meant for another vocabulary
    return included if included.any() else None


def _first(requested: Value | None, own: Value) -> Value:
    """Return the request's value, or the service's own if the request has none."""
    return own if requested is None else requested
