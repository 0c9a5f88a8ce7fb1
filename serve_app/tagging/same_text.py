"""Names that are the same text to a checkpoint, decided by their token ids.

SigLIP drops punctuation, so `C`, `C++` and `C#` are one name to it, and it reads every character
that it does not know as the same token. SigLIP 2 tells all of these apart.

A registered vocabulary may not have two tags of one text: one of them is a mistake, which can be
fixed in its file. A request may have them, because its labels often come from other software,
which expects a score for each. Such labels get exactly the same score and keep the order in which
they were sent.

Not here: names that no checkpoint tells apart (`vocabulary_checks.py`), token ids
(`towers/tokenizer.py`).
"""

from collections.abc import Callable, Sequence

from serve_app.errors import InvalidRequest
from serve_app.tagging.prompts import fill_template
from serve_app.tagging.tag_bank import RowKey, prompts_of
from serve_app.tagging.vocabulary import TagVocabulary, has_word


def naming_prompts(vocabulary: TagVocabulary) -> list[str]:
    """Return a prompt for each of the R names. Names that differ in one template do so in all."""
    template = vocabulary.prompt_templates[0]
    return [fill_template(template, name) for name in vocabulary.names]


def same_text_problems(
    vocabulary: TagVocabulary,
    digests: Sequence[bytes],
    place_of: Callable[[str], str] = lambda label: "",
) -> list[str]:
    """Return one line for each name that is the same text to the model as a name of another tag.

    Args:
        vocabulary: T tags with R names.
        digests: R digests of the token ids of `naming_prompts`.
        place_of: Where a label was read, such as `general.yaml:17`; empty if that is not known.
    """
    owners = [*vocabulary.labels, *(vocabulary.labels[tag] for tag in vocabulary.alias_owners)]
    first: dict[bytes, int] = {}
    problems: list[str] = []
    for i, digest in enumerate(digests):
        other = first.setdefault(digest, i)
        if owners[other] == owners[i]:
            continue
        place = place_of(owners[i])
        other_place = place_of(owners[other])
        problems.append(
            f"{place + ': ' if place else ''}{vocabulary.names[i]!r} is the same to this model as "
            f"{vocabulary.names[other]!r}{' at ' + other_place if other_place else ''}; "
            "keep one of them, or give one a prompt in other words."
        )
    return problems


def check_words(vocabulary: TagVocabulary, strips_punctuation: bool) -> None:
    """Raise `InvalidRequest` for a name that is empty to a model that drops punctuation.

    Its tokenizer does not know emoji or other symbols either. SigLIP 2 reads them.
    """
    if not strips_punctuation:
        return
    for name in vocabulary.names:
        if not has_word(name):
            raise InvalidRequest(
                f"The label {name!r} has no letter or digit, and this model reads nothing else; "
                "every label needs a word."
            )


def shared_rows(keys: Sequence[RowKey], canonicalize: Callable[[str], str]) -> dict[RowKey, RowKey]:
    """Return for each key of a request's bank the first key that is the same text to the model.

    Args:
        keys: Keys of the rows.
        canonicalize: Returns a prompt as the checkpoint's tokenizer sees it.
    """
    first: dict[tuple[str, ...], RowKey] = {}
    return {key: first.setdefault(tuple(map(canonicalize, prompts_of(key))), key) for key in keys}
