"""Checks of a vocabulary's tags together: names, categories and parents.

Whether a checkpoint tells the names apart is decided by their token ids (`same_text.py`).

Not here: reading the tags from files (`vocabulary_files.py`).
"""

from collections.abc import Sequence

from serve_app.errors import InvalidRequest
from serve_app.tagging.prompts import check_shown, check_templates
from serve_app.tagging.vocabulary import (
    MAX_LABEL_CHARACTERS,
    TagVocabulary,
    canonical_name,
    check_label,
)
from serve_app.tagging.vocabulary_blocks import Entry
from serve_app.untrusted.problems import MAX_PROBLEMS, label_hint, nearest, raise_problems

MAX_ANCESTORS = 256
"""Parents of one tag, with their parents and so on. WordNet's nouns have up to about 40."""
MAX_SHOWN = 10
"""Labels of a circle that a message names."""


def check_vocabulary(
    entries: Sequence[Entry],
    prompt_templates: Sequence[str],
    background_prompts: Sequence[str],
    name: str,
) -> TagVocabulary:
    """Check the tags of a registered vocabulary together and return them.

    Raises:
        ConfigError: One line for each problem: two tags of one name, no word, an unknown parent,
            parents in a circle.
    """
    problems = (
        _problems_of_names(entries)
        + _problems_of_categories(entries)
        + _problems_of_parents(entries)
    )
    if not entries:
        problems.append(f"{name}: there are no labels in it; give at least one.")
    try:
        check_templates(prompt_templates)
        for prompt in background_prompts:
            check_label(prompt)
    except InvalidRequest as error:
        problems.append(f"{name}: prompt_templates or background_prompts: {error}")
    raise_problems(problems)
    return TagVocabulary(
        tags=tuple(entry.tag for entry in entries),
        prompt_templates=tuple(prompt_templates),
        background_prompts=tuple(background_prompts),
    )


def _problems_of_names(entries: Sequence[Entry]) -> list[str]:
    problems: list[str] = []
    taken: dict[str, str] = {}
    for entry in entries:
        tag = entry.tag
        names = {
            canonical_name(name): name for name in (tag.label, tag.prompt) if name is not None
        }  # one may repeat the other
        said = [
            *names.values(),
            *(
                alias
                for alias in tag.aliases
                if tag.prompt is None or canonical_name(alias) != canonical_name(tag.prompt)
            ),
        ]
        for name in said:
            try:
                check_label(name.strip())
            except InvalidRequest as error:
                problems.append(f"{entry.where}: {'prompt: ' if name is tag.prompt else ''}{error}")
                continue
            if name != name.strip():
                problems.append(f"{entry.where}: {name!r} has spaces around it; take them away.")
            canonical = canonical_name(name)
            if canonical in taken:
                problems.append(
                    f"{entry.where}: {name!r} is the same to the model as a name at "
                    f"{taken[canonical]}; keep one of them."
                )
            taken.setdefault(canonical, entry.where)
    return problems


def _problems_of_categories(entries: Sequence[Entry]) -> list[str]:
    problems: list[str] = []
    for entry in entries:
        if entry.tag.category is None:
            continue
        try:
            check_shown(entry.tag.category, "category")
        except InvalidRequest as error:
            problems.append(f"{entry.where}: {error}")
        if len(entry.tag.category) > MAX_LABEL_CHARACTERS:
            problems.append(
                f"{entry.where}: the category is longer than {MAX_LABEL_CHARACTERS} characters; "
                "shorten it."
            )
    return problems


def _problems_of_parents(entries: Sequence[Entry]) -> list[str]:
    known = {entry.tag.label: entry for entry in entries}
    problems: list[str] = []
    for entry in entries:
        for parent in entry.tag.parents:
            if parent not in known:
                # finding the nearest label takes milliseconds for each
                is_shown = len(problems) < MAX_PROBLEMS
                similar = nearest(parent, known, cutoff=0.6) if is_shown else None
                hint = label_hint(similar, otherwise="; add it as a tag of its own.")
                problems.append(
                    f"{entry.where}: the parent {parent!r} is not a label of this vocabulary{hint}"
                )
    if not problems and (circle := _circle(known)):
        shown = [*circle[:MAX_SHOWN], "…"] if len(circle) > MAX_SHOWN else circle
        problems.append(
            f"{known[circle[0]].where}: parents go round in a circle: {' → '.join(shown)}."
        )
    return problems or _problems_of_ancestry(known)


def _problems_of_ancestry(known: dict[str, Entry]) -> list[str]:
    """Return a problem for each tag with too many ancestors (`TagTable.ancestors`)."""
    problems: list[str] = []
    for entry in known.values():
        found = set(entry.tag.parents)
        waiting = list(found)
        while waiting and len(found) <= MAX_ANCESTORS:
            new = set(known[waiting.pop()].tag.parents) - found
            found |= new
            waiting += new
        if len(found) > MAX_ANCESTORS:
            problems.append(
                f"{entry.where}: the tag has more than {MAX_ANCESTORS} parents, counting theirs; "
                "remove some."
            )
    return problems


def _circle(known: dict[str, Entry]) -> list[str]:
    """Return the labels of a circle of parents, if there is one."""
    finished: set[str] = set()
    for start in known:
        path: list[str] = [start]
        on_path = {start}
        pending = [iter(known[start].tag.parents)]
        while pending:
            parent = next(pending[-1], None)
            if parent is None:
                pending.pop()
                on_path.discard(path[-1])
                finished.add(path.pop())
            elif parent in on_path:
                return [*path[path.index(parent) :], parent]
            elif parent not in finished:
                path.append(parent)
                on_path.add(parent)
                pending.append(iter(known[parent].tag.parents))
    return []
