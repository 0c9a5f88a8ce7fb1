"""The settings that can change while the service runs, and the options of one request."""

import json
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve_app.errors import InvalidRequest, UnknownVocabulary
from serve_app.tagging.calibration import Calibration
from serve_app.tagging.prompts import check_templates
from serve_app.tagging.scores import Score
from serve_app.tagging.selection import Parents, SelectionRule, SortBy
from serve_app.tagging.tag_table import BoolArray, TagTable
from serve_app.tagging.vocabulary import (
    DEFAULT_BACKGROUND,
    TagVocabulary,
    check_prompt_count,
    make_vocabulary,
)
from serve_app.tagging.vocabulary_blocks import Entry
from serve_app.tagging.vocabulary_checks import check_vocabulary

Quality = Literal["standard", "high"]


class TagOptions(NamedTuple):
    """What a request asks for; None where it leaves the service's own setting.

    A tuple, as `TagScore` is: one travels with every image.
    """

    labels: tuple[str, ...] | None = None
    prompt_templates: tuple[str, ...] | None = None
    vocabulary: str | None = None
    confidence_threshold: float | None = None
    max_tags: int | None = None
    min_tags: int | None = None
    score: Score | None = None
    sort_by: SortBy | None = None
    parents: Parents | None = None
    include_labels: tuple[str, ...] = ()
    exclude_labels: tuple[str, ...] = ()
    include_categories: tuple[str, ...] = ()
    exclude_categories: tuple[str, ...] = ()
    include_raw_scores: bool | None = None
    quality: Quality = "standard"

    @property
    def asks_for_text(self) -> bool:
        """Whether labels, templates or background prompts may have to be encoded for this
        request.
        """
        return self.labels is not None or self.prompt_templates is not None

    def text_part(self) -> "TagOptions":
        """Return only what decides which texts are encoded."""
        return TagOptions(
            labels=self.labels,
            prompt_templates=self.prompt_templates,
            vocabulary=self.vocabulary,
            score=self.score,
        )


class Selection(BaseModel):
    """The `selection` block of the configuration: how tags are chosen, besides what the plugin
    schema says.

    Attributes:
        score: What is compared with thresholds; None for `calibrated` where a vocabulary has a
            calibration, else `sigmoid`.
        min_tags: The best so many are given even below their thresholds.
        parents: What a parent's score has to do with its children's.
        include_labels: Only these, and those of `include_categories`.
        exclude_labels: Never these.
        include_categories: Only these, and `include_labels`.
        exclude_categories: Never these.
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


TextKey = tuple[str | None, tuple[str, ...] | None, tuple[str, ...], bool]
"""What a request's own bank follows from, within one configuration: the name of the vocabulary it
changes, labels, templates, with a background or not."""


@dataclass(frozen=True, slots=True)
class AskedVocabulary:
    """Which vocabulary holds for a request: a registered one (`key` is None), or one of the
    request's own making.
    """

    name: str | None
    vocabulary: TagVocabulary
    key: TextKey | None


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

    def vocabulary_for(self, options: TagOptions, max_labels: int) -> AskedVocabulary:
        """Return the labels and templates that hold for a request.

        Raises:
            UnknownVocabulary: It names one that is not loaded.
            InvalidRequest: Its labels or templates cannot work.
        """
        name = options.vocabulary or self.default_vocabulary
        self.check_known(name)
        own = self.vocabularies[name].vocabulary
        templates = options.prompt_templates or own.prompt_templates
        if options.labels is not None:
            if options.vocabulary is not None:
                raise InvalidRequest("Give either labels or the name of a vocabulary.")
            background = DEFAULT_BACKGROUND if options.score == "margin" else ()
            vocabulary = make_vocabulary(options.labels, templates, max_labels, background)
            return AskedVocabulary(
                None,
                vocabulary,
                (None, vocabulary.labels, vocabulary.prompt_templates, bool(background)),
            )
        if options.prompt_templates is None:
            return AskedVocabulary(name, own, None)
        check_templates(templates)
        check_prompt_count(len(own.names), len(templates), bounded=True)
        changed = TagVocabulary.model_construct(
            tags=own.tags,
            prompt_templates=tuple(templates),
            background_prompts=own.background_prompts,
        )
        return AskedVocabulary(name, changed, (name, None, changed.prompt_templates, True))

    def check_known(self, name: str) -> None:
        """Raise `UnknownVocabulary` for a name that is not loaded."""
        if name not in self.vocabularies:
            raise UnknownVocabulary(
                f"There is no vocabulary {name[:60]!r}; loaded are {', '.join(self.vocabularies)}."
            )

    def rule_for(self, options: TagOptions, table: TagTable) -> SelectionRule:
        """Return how tags are chosen for a request, from the tags of a table.

        Raises:
            InvalidRequest: A value is out of bounds, or names what the vocabulary does not have.
        """
        threshold = (
            self.confidence_threshold
            if options.confidence_threshold is None
            else options.confidence_threshold
        )
        max_tags = self.max_tags if options.max_tags is None else options.max_tags
        if not 0 <= threshold <= 1:
            raise InvalidRequest(
                f"confidence_threshold is {threshold}; it must lie between 0 and 1."
            )
        if max_tags < 1:
            raise InvalidRequest(f"max_tags is {max_tags}; it must be at least 1.")
        min_tags = (
            min(self.selection.min_tags, max_tags) if options.min_tags is None else options.min_tags
        )
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
        """Return whether logits are shown to a request."""
        return (
            self.include_raw_scores
            if options.include_raw_scores is None
            else options.include_raw_scores
        )

    def _score(self, table: TagTable) -> Score:
        """Return the score where a request names none; what a vocabulary of its own making cannot
        have falls back to sigmoid.
        """
        wanted = self.selection.score or "calibrated"
        if (wanted == "calibrated" and table.lines is None) or (
            wanted == "margin" and not table.vocabulary.background_prompts
        ):
            return "sigmoid"
        return wanted

    def _allowed(self, options: TagOptions, table: TagTable) -> BoolArray | None:
        """Return which tags may be given: a request's includes stand for the service's, its
        excludes beside them.

        The service's own filters are for its vocabularies. Labels that a request brings are all
        scored.
        """
        own = NO_SELECTION if options.labels is not None else self.selection
        included: BoolArray | None = None
        if options.include_labels or options.include_categories:
            included = table.mask(
                options.include_labels, options.include_categories, "include", True
            )
        elif own.include_labels or own.include_categories:
            included = table.mask(own.include_labels, own.include_categories, "include", False)
            if not included.any():  # they are another vocabulary's
                included = None
        if not (
            options.exclude_labels
            or options.exclude_categories
            or own.exclude_labels
            or own.exclude_categories
        ):
            return included
        excluded = table.mask(options.exclude_labels, options.exclude_categories, "exclude", True)
        excluded = excluded | table.mask(
            own.exclude_labels, own.exclude_categories, "exclude", False
        )
        allowed: BoolArray = ~excluded if included is None else np.logical_and(included, ~excluded)
        return allowed
