"""What may change while the service runs, and what one request may ask for instead."""

from dataclasses import dataclass

from serve_app.errors import InvalidRequest
from serve_app.tagging.selection import SelectionRule, SortBy
from serve_app.tagging.vocabulary import TagVocabulary, make_vocabulary


@dataclass(frozen=True, slots=True)
class TagOptions:
    """What a request asks for; None where it leaves the service's own setting."""

    labels: tuple[str, ...] | None = None
    prompt_templates: tuple[str, ...] | None = None
    confidence_threshold: float | None = None
    max_tags: int | None = None


@dataclass(frozen=True, slots=True)
class TagSettings:
    """The service's own vocabulary and selection, replaced as a whole when the configuration changes."""

    vocabulary: TagVocabulary
    rule: SelectionRule

    def vocabulary_for(self, options: TagOptions, max_labels: int) -> TagVocabulary:
        """Return the labels and templates that hold for a request.

        Raises:
            InvalidRequest: The request's labels or templates cannot work.
        """
        if options.labels is None and options.prompt_templates is None:
            return self.vocabulary
        templates = options.prompt_templates or self.vocabulary.prompt_templates
        if options.labels is None:
            return make_vocabulary(self.vocabulary.labels, templates, len(self.vocabulary.labels))
        return make_vocabulary(options.labels, templates, max_labels)

    def rule_for(self, options: TagOptions) -> SelectionRule:
        """Return the threshold, number and order of tags that hold for a request.

        Raises:
            InvalidRequest: A value is out of bounds.
        """
        threshold = self.rule.confidence_threshold if options.confidence_threshold is None else options.confidence_threshold
        max_tags = self.rule.max_tags if options.max_tags is None else options.max_tags
        if not 0 <= threshold <= 1:
            raise InvalidRequest(f"confidence_threshold is {threshold}; it must lie between 0 and 1.")
        if max_tags < 1:
            raise InvalidRequest(f"max_tags is {max_tags}; it must be at least 1.")
        return SelectionRule(threshold, max_tags, self.rule.sort_by)


def make_settings(
    labels: tuple[str, ...], prompt_templates: tuple[str, ...], confidence_threshold: float, max_tags: int, sort_by: SortBy
) -> TagSettings:
    """Check and return the service's own settings; a registered vocabulary has no upper bound of labels."""
    vocabulary = make_vocabulary(labels, prompt_templates, max_labels=None)
    return TagSettings(vocabulary, SelectionRule(confidence_threshold, max_tags, sort_by))
