"""The part of the configuration that changes while the service runs, as it travels in Serve's
`user_config`.

Everything else restarts replicas when it changes. `frozen_part` is what is left of a configuration
without the live part, so that a change of the live part alone leaves the application's `args`, and
with them every replica, as they are.
"""

import json
from typing import Any, Self

from pydantic import Field, model_validator

from serve_app.config.service import ServiceConfig
from serve_app.config.serving import Settings
from serve_app.tagging.selection import SortBy
from serve_app.tagging.settings import RegisteredVocabulary, Selection, TagSettings
from serve_app.tagging.vocabulary_blocks import Entry
from serve_app.tagging.vocabulary_checks import check_vocabulary

SCALE_KEYS = ("max_ongoing_requests", "max_queued_requests")
"""Deployment options that Serve changes in place, so they stay out of `args` too."""
FIXED = 1
"""What stands in `args` for any fixed `num_replicas`: whether it is fixed restarts replicas, its
number does not."""


class _Live(Settings):
    @classmethod
    def from_user_config(cls, user_config: dict[str, Any]) -> Self:
        """Check what Serve hands to `reconfigure`; raises `ValueError` if it is not what was
        rendered.
        """
        return cls.model_validate_json(json.dumps(user_config))


class LiveTagging(_Live):
    """What the Postprocessor scores and selects by."""

    vocabularies: dict[str, RegisteredVocabulary] = Field(min_length=1)
    default_vocabulary: str
    selection: Selection
    confidence_threshold: float = Field(ge=0, le=1)
    max_tags: int = Field(ge=1)
    sort_by: SortBy
    include_raw_scores: bool

    @model_validator(mode="after")
    def _check_default(self) -> Self:
        if self.default_vocabulary not in self.vocabularies:
            raise ValueError(
                f"default_vocabulary {self.default_vocabulary!r} is none of vocabularies"
            )
        for (
            name,
            registered,
        ) in self.vocabularies.items():  # again: a `user_config` may have been written by hand
            own = registered.vocabulary
            check_vocabulary(
                [Entry(tag, name) for tag in own.tags],
                own.prompt_templates,
                own.background_prompts,
                name,
            )
        return self

    def tag_settings(self) -> TagSettings:
        """Return the vocabularies and selection."""
        return TagSettings(
            vocabularies=self.vocabularies,
            default=self.default_vocabulary,
            confidence_threshold=self.confidence_threshold,
            max_tags=self.max_tags,
            sort_by=self.sort_by,
            include_raw_scores=self.include_raw_scores,
            selection=self.selection,
        )


class LiveBatching(_Live):
    """How long the Preprocessor lets a micro-batch gather while the encoder is idle."""

    batch_wait_timeout_s: float = Field(ge=0, le=10)


def live_tagging(config: ServiceConfig) -> LiveTagging:
    """Return the Postprocessor's live part."""
    settings = config.tag_settings()
    return LiveTagging(
        vocabularies=config.vocabularies,
        default_vocabulary=settings.default,
        selection=settings.selection,
        confidence_threshold=settings.confidence_threshold,
        max_tags=settings.max_tags,
        sort_by=settings.sort_by,
        include_raw_scores=settings.include_raw_scores,
    )


def live_batching(config: ServiceConfig) -> LiveBatching:
    """Return the Preprocessor's live part."""
    return LiveBatching(batch_wait_timeout_s=config.serving.batch_wait_timeout_s)


def frozen_part(config: ServiceConfig) -> dict[str, Any]:
    """Return a configuration without the live part and the scale, every other key spelled out."""
    data = config.model_dump(
        mode="json", exclude={"vocabularies", "default_vocabulary", "prompt_templates", "selection"}
    )
    for key in LiveTagging.model_fields:
        data["plugins"]["siglip"].pop(key, None)
    for key in (
        "batch_wait_timeout_s",
        "scale_down_delay_s",
        "host",
        "port",
        "route_prefix",
        "ingress",
    ):
        del data["serving"][key]
    for block in data["serving"].values():
        if isinstance(block, dict):
            for key in SCALE_KEYS:
                del block[key]
            if block["num_replicas"] != "auto":
                block["num_replicas"] = FIXED
    return data
