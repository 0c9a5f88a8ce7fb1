"""The labels that images are tagged with, checked before anything is encoded.

Not here: how labels become prompts (`prompts.py`), their embeddings (`tag_bank.py`).
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from serve_app.errors import InvalidRequest
from serve_app.tagging.prompts import check_templates, check_text

MAX_LABEL_CHARACTERS = 256
"""Source: `MAX_TAG_LABEL_LENGTH` of the plugin host's `constants.py`."""
MAX_REQUEST_PROMPTS = 4_000
"""Labels times templates of one request; a registered vocabulary has no bound."""


@dataclass(frozen=True, slots=True)
class TagVocabulary:
    """Labels, in order and without repeats, and the templates they are said in. Build it with `make_vocabulary`."""

    labels: tuple[str, ...]
    prompt_templates: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change whenever a label or a template does."""
        content = json.dumps([self.labels, self.prompt_templates], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def make_vocabulary(labels: Iterable[str], prompt_templates: Sequence[str], max_labels: int | None) -> TagVocabulary:
    """Check labels and templates and return them as a vocabulary; a label said twice is kept once.

    `max_labels` bounds what came with a request, and its prompts too; None for a registered vocabulary.

    Raises:
        InvalidRequest: No labels, too many, one that is empty or too long, or a template that cannot work.
    """
    kept = tuple(dict.fromkeys(label.strip() for label in labels))
    if not kept:
        raise InvalidRequest("labels is empty; give at least one label.")
    if max_labels is not None and len(kept) > max_labels:
        raise InvalidRequest(f"There are {len(kept):,} labels; at most {max_labels:,} are taken in one request.")
    for label in kept:
        check_text(label)
        if not any(c.isalnum() for c in label):
            raise InvalidRequest(f"The label {label!r} has no letter or digit; every label needs a word.")
        if len(label) > MAX_LABEL_CHARACTERS:
            raise InvalidRequest(f"The label {label[:40]!r}… has {len(label)} characters; at most {MAX_LABEL_CHARACTERS} are taken.")
    check_templates(prompt_templates)
    prompts = len(kept) * len(prompt_templates)
    if max_labels is not None and prompts > MAX_REQUEST_PROMPTS:
        raise InvalidRequest(
            f"{len(kept):,} labels under {len(prompt_templates)} templates are {prompts:,} prompts; "
            f"at most {MAX_REQUEST_PROMPTS:,} are encoded for one request."
        )
    return TagVocabulary(kept, tuple(prompt_templates))
