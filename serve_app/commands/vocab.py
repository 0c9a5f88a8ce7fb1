"""`siglip-serve vocab build|show|diff`: encodes, shows and compares vocabularies."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from serve_app.config.service import load_config
from serve_app.errors import ConfigError, InvalidRequest
from serve_app.pipeline.local_scorer import LocalScorer
from serve_app.tagging.prompts import DEFAULT_TEMPLATE
from serve_app.tagging.registered import read_registered
from serve_app.tagging.tag_bank import TagBank, prompts_of, row_keys
from serve_app.tagging.vocabulary import Tag, TagVocabulary
from serve_app.terminal.console import SafeConsole, SafeTable, output_console
from serve_app.terminal.printable import print_line

MAX_NEAR = 50
"""Maximum number of pairs that `--near` lists."""
NEAR_COSINE = 0.95
"""Default of `--near`."""
MAX_EXAMPLE_CHARACTERS = 60
"""Maximum length of a category's examples."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `vocab build`, `vocab show` and `vocab diff`."""
    actions = parser.add_subparsers(title="commands", required=True)
    build_parser = actions.add_parser("build", help="encode a configuration's vocabularies")
    build_parser.add_argument("config", type=Path)
    build_parser.add_argument(
        "--near",
        type=float,
        nargs="?",
        const=NEAR_COSINE,
        help="also list pairs of similar tags, whose embeddings have at least this cosine",
    )
    build_parser.set_defaults(action=_build)

    show_parser = actions.add_parser("show", help="show what a vocabulary file contains")
    show_parser.add_argument("file", type=Path)
    show_parser.add_argument("--category", help="list the tags of one category")
    show_parser.set_defaults(action=_show)

    diff_parser = actions.add_parser(
        "diff",
        help="compare two vocabulary files, and count the prompts to encode; "
        "exit status 1 if they differ",
    )
    diff_parser.add_argument("before", type=Path)
    diff_parser.add_argument("after", type=Path)
    diff_parser.set_defaults(action=_diff)


def run(args: argparse.Namespace) -> int:
    """Build, show or compare vocabularies.

    Raises:
        ConfigError: A configuration, a vocabulary file or the checkpoint is not usable.
        InvalidRequest: A label has more tokens than the checkpoint reads, or a category is unknown.
    """
    status: int = args.action(args)
    return status


def _build(args: argparse.Namespace) -> int:
    """Encode the prompts of every vocabulary that are not stored yet, and print a summary."""
    scorer = LocalScorer(load_config(args.config))
    store = scorer.known.store
    table = SafeTable("vocabulary", "tags", "prompts", "encoded now", "fingerprint")
    banks: dict[str, TagBank] = {}
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
        banks[name] = bank

    console = output_console()
    console.print(table)
    if store is None:
        console.print("not stored, because tag_banks is null")
    else:
        console.print(f"stored in {store.folder}")
    if args.near is not None:
        _print_near(console, banks, args.near)
    return 0


def _print_near(console: SafeConsole, banks: dict[str, TagBank], min_cosine: float) -> None:
    for name, bank in banks.items():
        for left, right, cosine in near_tags(bank, min_cosine):
            console.print(
                f"{name}: {left!r} and {right!r} are nearly the same to the model "
                f"(cosine {cosine:.3f})"
            )


def near_tags(bank: TagBank, min_cosine: float) -> list[tuple[str, str, float]]:
    """Return pairs of similar tags with their cosines, the most similar first.

    At most `MAX_NEAR` pairs are returned.

    Args:
        bank: The tags.
        min_cosine: Minimum cosine of a pair.
    """
    rows = np.asarray(bank.text_embeds[: len(bank.table)])
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T
    left, right = np.nonzero(np.triu(cosines >= min_cosine, k=1))
    order = np.argsort(-cosines[left, right], kind="stable")[:MAX_NEAR]
    labels = bank.table.labels
    return [(labels[left[i]], labels[right[i]], float(cosines[left[i], right[i]])) for i in order]


def _show(args: argparse.Namespace) -> int:
    """Print the categories of a vocabulary file, or the tags of one category."""
    vocabulary = _read(args.file)
    if args.category is None:
        _print_categories(args.file, vocabulary)
    else:
        _print_category(args.file, vocabulary, args.category)
    return 0


def _print_categories(path: Path, vocabulary: TagVocabulary) -> None:
    tags = vocabulary.tags
    aliases = sum(len(tag.aliases) for tag in tags)
    parents = sum(bool(tag.parents) for tag in tags)
    prompts = sum(tag.prompt is not None for tag in tags)
    console = output_console()
    console.print(
        f"{path}: {len(tags):,} tags, {prompts:,} with a prompt, {aliases:,} aliases, "
        f"{parents:,} with parents"
    )
    console.print(f"prompt templates: {', '.join(vocabulary.prompt_templates)}")

    table = SafeTable("category", "tags", "examples")
    for name, count in Counter(tag.category or "" for tag in tags).most_common():
        examples = ", ".join(tag.label for tag in tags if (tag.category or "") == name)
        table.add_row(name or "none", f"{count:,}", examples[:MAX_EXAMPLE_CHARACTERS])
    console.print(table)


def _print_category(path: Path, vocabulary: TagVocabulary, category: str) -> None:
    tags = [tag for tag in vocabulary.tags if tag.category == category]
    if not tags:
        known = sorted({tag.category for tag in vocabulary.tags if tag.category})
        raise InvalidRequest(f"{path} has no category {category!r}; it has {', '.join(known)}.")
    table = SafeTable("label", "prompt", "aliases", "parents", "threshold", "bias")
    for tag in tags:
        table.add_row(
            tag.label,
            tag.prompt or "",
            ", ".join(tag.aliases),
            ", ".join(tag.parents),
            "" if tag.threshold is None else f"{tag.threshold:g}",
            f"{tag.bias:g}" if tag.bias else "",
        )
    output_console().print(table)


def _diff(args: argparse.Namespace) -> int:
    """Print the differences between two vocabulary files; return 1 if there are any."""
    old = _read(args.before)
    new = _read(args.after)
    _print_changed_tags(old, new)
    if old.prompt_templates != new.prompt_templates:
        print_line(
            f"~ prompt_templates: {list(old.prompt_templates)} → {list(new.prompt_templates)}"
        )

    stored = set(row_keys(old))
    keys = row_keys(new)
    total = sum(len(prompts_of(key)) for key in keys)
    to_encode = sum(len(prompts_of(key)) for key in keys if key not in stored)
    print_line(f"{to_encode:,} of {total:,} prompts have to be encoded")
    return int(old != new)


def _print_changed_tags(old: TagVocabulary, new: TagVocabulary) -> None:
    before = {tag.label: tag for tag in old.tags}
    after = {tag.label: tag for tag in new.tags}
    for label in before:
        if label not in after:
            print_line(f"- {label}")
    for label, tag in after.items():
        if label not in before:
            print_line(f"+ {label}")
        elif tag != before[label]:
            print_line(f"~ {label}: {', '.join(_changes(before[label], tag))}")


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
