"""The labels that images are tagged with, before anything is encoded.

Not here: reading them from files (`vocabulary_files.py`), how labels become prompts (`prompts.py`),
their embeddings (`tag_bank.py`), thresholds fitted on images (`calibration.py`).
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from serve_app.errors import InvalidRequest
from serve_app.siglip.text import canonicalize_text
from serve_app.tagging.prompts import DEFAULT_TEMPLATE, check_shown
from serve_app.untrusted.nulls import NullIsDefault

MAX_LABEL_CHARACTERS = 256
"""Source: `MAX_TAG_LABEL_LENGTH` of the plugin host's `constants.py`."""
MAX_BIAS = 1_000.0
"""Logits, either way."""
SYMBOLS = ("So", "Sc", "Sm")
"""Unicode categories of characters with a meaning of their own: emoji, currencies, arrows."""
MAX_REQUEST_PROMPTS = 4_000
"""Labels times templates of one request; a registered vocabulary has no bound."""
DEFAULT_BACKGROUND = (
    "a photo.",
    "an image.",
    "a picture of something.",
    "a blurry picture.",
    "a background.",
    "text.",
)
"""Sentences that fit any image, which `score: margin` compares with."""


def _check_number(value: Any) -> Any:
    """Refuse booleans: YAML reads `yes` as true, which pydantic would take for 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


class Tag(NullIsDefault):
    """One thing that an image may show.

    Attributes:
        label: What responses show, as it was written.
        prompt: Replaces the label in prompt templates.
        aliases: Other names of the same thing; a tag's score is that of its best name.
        category: A group of tags that can be included or excluded together.
        parents: Labels of broader tags of the same vocabulary.
        threshold: Minimum confidence of this tag, in [0, 1], instead of the general one.
        bias: Added to the tag's logit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    label: str
    prompt: str | None = None
    aliases: tuple[str, ...] = ()
    category: str | None = None
    parents: tuple[str, ...] = ()
    threshold: Annotated[float, Field(ge=0, le=1), BeforeValidator(_check_number)] | None = None
    bias: Annotated[float, BeforeValidator(_check_number)] = Field(0.0, ge=-MAX_BIAS, le=MAX_BIAS)

    @property
    def names(self) -> tuple[str, ...]:
        """The names in prompts: the prompt or the label, then the aliases."""
        return (self.prompt or self.label, *self.aliases)


def _tag_from(value: Any) -> Any:
    return {"label": value} if isinstance(value, str) else value


def _tag_to(tag: Tag) -> str | dict[str, Any]:
    """Return the shortest form of a tag: thousands of them are in Serve's `user_config`."""
    filled = tag.model_dump(mode="json", exclude_defaults=True)
    return tag.label if len(filled) == 1 else filled


TagEntry = Annotated[Tag, BeforeValidator(_tag_from), PlainSerializer(_tag_to)]
"""A tag, or only its label."""


class TagVocabulary(BaseModel):
    """Tags, in order and without repeats, and their prompt templates.

    `vocabulary_checks.py` checks registered vocabularies; `vocabulary_of_labels` makes one of a
    request.

    Attributes:
        tags: T tags.
        prompt_templates: K sentences with a place for the label; a tag's row is the mean of its
            prompts' embeddings.
        background_prompts: Finished sentences for `score: margin`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tags: tuple[TagEntry, ...]
    prompt_templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)
    background_prompts: tuple[str, ...] = ()

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """T labels."""
        return tuple(tag.label for tag in self.tags)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """R names: every tag's prompt or label first, then all aliases in the tags' order."""
        return (
            *(tag.names[0] for tag in self.tags),
            *(alias for tag in self.tags for alias in tag.aliases),
        )

    @cached_property
    def alias_owners(self) -> tuple[int, ...]:
        """The tag's number of each alias, in the order of `names`."""
        return tuple(i for i, tag in enumerate(self.tags) for _ in tag.aliases)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change with labels, names, templates and background prompts."""
        content = [
            self.labels,
            self.names,
            self.alias_owners,
            self.prompt_templates,
            self.background_prompts,
        ]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]


def canonical_name(text: str) -> str:
    """Return a name without case, `_` and repeated spaces, which no checkpoint distinguishes.

    A checkpoint may distinguish fewer names than this does: `same_text.py` compares token ids.
    """
    return canonicalize_text(text, strip_punctuation=False)


def loose_name(text: str) -> str:
    """Return a name as people look it up, where `-` is a space too."""
    return canonical_name(text.replace("-", " "))


def checked_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Return a request's labels without the spaces around them, each once.

    Raises:
        InvalidRequest: There are none, or one is empty or too long.
    """
    kept = tuple(dict.fromkeys(label.strip() for label in labels))
    if not kept:
        raise InvalidRequest("labels is empty; give at least one label.")
    for label in kept:
        check_label(label)
    return kept


def vocabulary_of_labels(
    labels: Iterable[str],
    prompt_templates: Sequence[str],
    background_prompts: Sequence[str] = (),
) -> TagVocabulary:
    """Return a vocabulary of labels that are checked already (`checked_labels`)."""
    return TagVocabulary.model_construct(
        tags=tuple(Tag.model_construct(label=label) for label in labels),
        prompt_templates=tuple(prompt_templates),
        background_prompts=tuple(background_prompts),
    )


def check_label(label: str) -> None:
    """Raise `InvalidRequest` for a label that is too long, says nothing or has a hidden character.

    Every label needs a word or a symbol; punctuation alone says nothing to any model. SigLIP 2's
    tokenizer knows symbols such as emoji, and `check_words` refuses them for SigLIP.
    """
    check_shown(label)
    if not has_word(label) and not any(unicodedata.category(c) in SYMBOLS for c in label):
        raise InvalidRequest(
            f"The label {label!r} has no letter or digit and no symbol; every label needs a word."
        )
    if len(label) > MAX_LABEL_CHARACTERS:
        raise InvalidRequest(
            f"The label {label[:40]!r}… has {len(label)} characters; at most "
            f"{MAX_LABEL_CHARACTERS} are taken."
        )


def has_word(label: str) -> bool:
    """Return whether a label has a letter or a digit."""
    return any(c.isalnum() for c in label)


def check_prompt_count(num_names: int, num_templates: int) -> None:
    """Raise `InvalidRequest` for more prompts than are encoded for one request."""
    num_prompts = num_names * num_templates
    if num_prompts > MAX_REQUEST_PROMPTS:
        raise InvalidRequest(
            f"{num_names:,} labels under {num_templates} templates are {num_prompts:,} prompts; "
            f"at most {MAX_REQUEST_PROMPTS:,} are encoded for one request."
        )
