"""The options of one request: the vocabulary that it is scored against, and how tags are chosen.

Labels and templates are checked here and nowhere else. What is checked travels with the request.

Not here: the service's own settings, which hold where a request leaves an option out
(`settings.py`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from serve_app.errors import InvalidRequest
from serve_app.tagging.choices import Parents, Quality, Score, SortBy
from serve_app.tagging.prompts import check_templates
from serve_app.tagging.vocabulary import check_prompt_count, checked_labels


class RequestedVocabulary(NamedTuple):
    """The vocabulary that a request is scored against.

    A registered vocabulary travels as its name. A tuple, as `TagOptions` is.

    Attributes:
        name: Name of a registered vocabulary; None for the default one.
        labels: Labels of the request, checked and without repeats, instead of a registered
            vocabulary.
        prompt_templates: Checked templates, instead of those of the vocabulary.
        with_background: Whether `labels` are scored beside background prompts.
    """

    name: str | None = None
    labels: tuple[str, ...] | None = None
    prompt_templates: tuple[str, ...] | None = None
    with_background: bool = False

    @property
    def is_registered(self) -> bool:
        """Whether a registered vocabulary is used as it is, so that no prompt is encoded."""
        return self.labels is None and self.prompt_templates is None


DEFAULT_VOCABULARY = RequestedVocabulary()


class TagOptions(NamedTuple):
    """What a request asks for; None where it leaves the service's own setting.

    `tag_options` makes one of labels and templates that are not checked yet. A tuple, as `TagScore`
    is: one travels with every image.
    """

    vocabulary: RequestedVocabulary = DEFAULT_VOCABULARY
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


def tag_options(
    labels: Sequence[str] | None = None,
    prompt_templates: Sequence[str] | None = None,
    vocabulary: str | None = None,
    score: Score | None = None,
    max_labels: int | None = None,
    **others: Any,
) -> TagOptions:
    """Check a request's labels and templates and return its options.

    Args:
        labels: See `requested_vocabulary`; the same for the next four.
        prompt_templates: Templates.
        vocabulary: Name of a registered vocabulary.
        score: The requested score.
        max_labels: Limit on the labels.
        others: The other fields of `TagOptions`.

    Raises:
        InvalidRequest: The labels or templates cannot work.
    """
    requested = requested_vocabulary(labels, prompt_templates, vocabulary, score, max_labels)
    return TagOptions(vocabulary=requested, score=score, **others)


def requested_vocabulary(
    labels: Sequence[str] | None,
    prompt_templates: Sequence[str] | None = None,
    name: str | None = None,
    score: Score | None = None,
    max_labels: int | None = None,
) -> RequestedVocabulary:
    """Check a request's labels and templates and return the vocabulary that it asks for.

    Args:
        labels: Labels instead of a registered vocabulary. A repeated label is kept once.
        prompt_templates: Templates instead of the vocabulary's own.
        name: Name of a registered vocabulary.
        score: The requested score; `margin` needs background prompts.
        max_labels: Limit on the labels, repeats included; None for no limit.

    Raises:
        InvalidRequest: The labels are none, too many, empty or too long, or a template cannot work.
    """
    templates = None if prompt_templates is None else tuple(prompt_templates)
    if templates is not None:
        check_templates(templates)
    if labels is None:
        return RequestedVocabulary(name, None, templates)

    if max_labels is not None:
        check_label_count(len(labels), max_labels)
    kept = checked_labels(labels)
    # without templates of its own, those of the default vocabulary are counted once it is known
    check_prompt_count(len(kept), 1 if templates is None else len(templates))
    return RequestedVocabulary(name, kept, templates, with_background=score == "margin")


def check_label_count(num_labels: int, max_labels: int) -> None:
    """Raise `InvalidRequest` for more labels than one request may have."""
    if num_labels > max_labels:
        raise InvalidRequest(
            f"There are {num_labels:,} labels; at most {max_labels:,} are allowed in one request."
        )
