"""`siglip-serve vocab build|show|diff`: encode a configuration's vocabularies ahead, look at one,
compare two.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from serve_app.config.service import ServiceConfig
from serve_app.errors import ConfigError, InvalidRequest
from serve_app.pipeline.local_scorer import LocalScorer
from serve_app.tagging.prompts import DEFAULT_TEMPLATE
from serve_app.tagging.registered import read_registered
from serve_app.tagging.same_text import check_words, naming_prompts, same_text_problems
from serve_app.tagging.tag_bank import TagBank, prompts_of, row_keys
from serve_app.tagging.vocabulary import Tag, TagVocabulary
from serve_app.terminal.console import SafeTable, output_console
from serve_app.terminal.printable import print_line

if TYPE_CHECKING:
    from serve_app.towers.tokenizer import SiglipTextInputs

MOST_NEAR = 50


def build(config: ServiceConfig, near: float | None) -> int:
    """Encode what is not stored yet of every vocabulary of a configuration, and say where it lies.

    Raises:
        ConfigError: The checkpoint or a setting cannot work.
        InvalidRequest: A name has more tokens than the checkpoint reads.
    """
    scorer = LocalScorer(config)
    store = scorer.known.store
    table = SafeTable("vocabulary", "tags", "prompts", "encoded now", "fingerprint")
    found: list[tuple[str, TagBank]] = []
    for name, registered in scorer.settings.vocabularies.items():
        before = scorer.prompts_encoded
        bank = scorer.registered(name).bank
        prompts = sum(len(prompts_of(key)) for key in row_keys(registered.vocabulary))
        table.add_row(
            name,
            f"{len(bank.table):,}",
            f"{prompts:,}",
            f"{scorer.prompts_encoded - before:,}",
            bank.fingerprint,
        )
        found.append((name, bank))
    console = output_console()
    console.print(table)
    console.print("kept nowhere: tag_banks is null" if store is None else f"kept in {store.folder}")
    if near is None:
        return 0
    for name, bank in found:
        for left, right, cosine in near_tags(bank, near):
            console.print(
                f"{name}: {left!r} and {right!r} are nearly one to the model (cosine {cosine:.3f})"
            )
    return 0


def near_tags(bank: TagBank, least: float) -> list[tuple[str, str, float]]:
    """Return pairs of tags whose embeddings have at least some cosine, the nearest first, at most
    `MOST_NEAR`.
    """
    rows = np.asarray(bank.text_embeds[: len(bank.table)])
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T
    left, right = np.nonzero(np.triu(cosines >= least, k=1))
    order = np.argsort(-cosines[left, right], kind="stable")[:MOST_NEAR]
    labels = bank.table.labels
    return [
        (labels[left[at]], labels[right[at]], float(cosines[left[at], right[at]])) for at in order
    ]


def show(path: Path, category: str | None) -> int:
    """Print what a vocabulary file holds: its categories, or the tags of one.

    Raises:
        ConfigError: The file cannot work; one line for each problem.
        InvalidRequest: There is no such category.
    """
    own = _read(path)
    console = output_console()
    if category is None:
        aliases = sum(len(tag.aliases) for tag in own.tags)
        parents = sum(bool(tag.parents) for tag in own.tags)
        prompts = sum(tag.prompt is not None for tag in own.tags)
        console.print(
            f"{path}: {len(own.tags):,} tags, {prompts:,} with a prompt, {aliases:,} aliases, {parents:,} with parents"
        )
        console.print(f"said as: {', '.join(own.prompt_templates)}")
        table = SafeTable("category", "tags", "for example")
        for name, count in Counter(tag.category or "" for tag in own.tags).most_common():
            table.add_row(
                name or "none",
                f"{count:,}",
                ", ".join(tag.label for tag in own.tags if (tag.category or "") == name)[:60],
            )
        console.print(table)
        return 0
    tags = [tag for tag in own.tags if tag.category == category]
    if not tags:
        raise InvalidRequest(
            f"{path} has no category {category!r}; it has {', '.join(sorted({t.category for t in own.tags if t.category}))}."
        )
    table = SafeTable("label", "said as", "aliases", "parents", "threshold", "bias")
    for tag in tags:
        threshold = "" if tag.threshold is None else f"{tag.threshold:g}"
        table.add_row(
            tag.label,
            tag.prompt or "",
            ", ".join(tag.aliases),
            ", ".join(tag.parents),
            threshold,
            f"{tag.bias:g}" if tag.bias else "",
        )
    console.print(table)
    return 0


def diff(before: Path, after: Path) -> int:
    """Print what one vocabulary file has that another has not, and how many prompts the change
    costs; 1 if they differ.

    Raises:
        ConfigError: One of them cannot work.
    """
    old = _read(before)
    new = _read(after)
    known = {tag.label: tag for tag in old.tags}
    now = {tag.label: tag for tag in new.tags}
    for label in known:
        if label not in now:
            print_line(f"- {label}")
    for label, tag in now.items():
        if label not in known:
            print_line(f"+ {label}")
        elif tag != known[label]:
            print_line(f"~ {label}: {', '.join(_changes(known[label], tag))}")
    if old.prompt_templates != new.prompt_templates:
        print_line(
            f"~ prompt_templates: {list(old.prompt_templates)} → {list(new.prompt_templates)}"
        )
    rows = set(row_keys(old))
    prompts = sum(len(prompts_of(key)) for key in row_keys(new) if key not in rows)
    print_line(
        f"{prompts:,} of {sum(len(prompts_of(key)) for key in row_keys(new)):,} prompts have to be encoded"
    )
    return int(old != new)


def checkpoint_problems(config: ServiceConfig) -> list[str]:
    """Return one line for each name of a configuration that its checkpoint cannot work with.

    These are prompts with more tokens than it reads, names that are one text to it, and names of
    which it reads nothing.

    Raises:
        ConfigError: The checkpoint cannot be read.
    """
    from serve_app.towers.tokenizer import (
        SiglipTextInputs,  # imports transformers, which takes seconds
    )

    scorer = LocalScorer(config)
    inputs = SiglipTextInputs(scorer.checkpoint)
    lines: list[str] = []
    for name, registered in config.vocabularies.items():
        own = registered.vocabulary
        place_of = partial(config.place_of, name)
        try:
            check_words(own, scorer.checkpoint.strips_punctuation)
        except InvalidRequest as error:
            lines.append(f"{name}: {error}")
            continue
        lines += _overlong(own, inputs, place_of)
        lines += same_text_problems(own, inputs.digests(naming_prompts(own)), place_of)
    return lines


def _overlong(
    own: TagVocabulary, inputs: "SiglipTextInputs", place_of: Callable[[str], str]
) -> list[str]:
    owners = [*own.labels, *(own.labels[at] for at in own.alias_owners), *own.background_prompts]
    return [
        f"{place_of(label)}: {inputs.overlong_message(prompt, tokens)}"
        for key, label in zip(row_keys(own), owners, strict=True)
        for prompt, tokens in inputs.overlong(prompts_of(key))
    ]


def _changes(old: Tag, new: Tag) -> Sequence[str]:
    return [
        f"{key} {getattr(old, key)!r} → {getattr(new, key)!r}"
        for key in Tag.model_fields
        if getattr(old, key) != getattr(new, key)
    ]


def _read(path: Path) -> TagVocabulary:
    if not path.is_file():
        raise ConfigError(f"{path} is not a file.")
    return read_registered(path.name, path.parent, str(path), (DEFAULT_TEMPLATE,)).vocabulary
