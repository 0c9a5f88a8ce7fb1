"""The vocabularies of a configuration: files are read, and templates and calibrations are joined.

Not here: the entries of the configuration that name them (`vocabulary_sources.py`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serve_app.errors import ConfigError
from serve_app.tagging.calibration import Calibration, read_calibration
from serve_app.tagging.config_files import ConfigFile
from serve_app.tagging.prompts import DEFAULT_TEMPLATE
from serve_app.tagging.settings import RegisteredVocabulary, Selection
from serve_app.tagging.vocabulary import DEFAULT_BACKGROUND, loose_name
from serve_app.tagging.vocabulary_blocks import VocabularyFile, inline_entries
from serve_app.tagging.vocabulary_checks import check_vocabulary
from serve_app.tagging.vocabulary_files import read_vocabulary_file
from serve_app.tagging.vocabulary_sources import NamedSource, read_source, take_sources


def read_registered(
    value: Any, folder: Path, where: str, prompt_templates: Sequence[str]
) -> RegisteredVocabulary:
    """Read one vocabulary whose entry is in memory, such as the name of a file."""
    return _read_placed(NamedSource(where, (), value, ()), ConfigFile(folder), prompt_templates)[0]


def with_vocabularies(
    data: dict[str, Any], file: ConfigFile, problems: list[str], places: dict[tuple[str, str], str]
) -> dict[str, Any]:
    """Return the configuration with every vocabulary read that it names.

    Args:
        data: The configuration.
        file: Where it was read from.
        problems: A line is added for each problem.
        places: The place of each label is added, by vocabulary and label.
    """
    data, sources = take_sources(data, file, problems)
    templates = data.get("prompt_templates")
    templates = [DEFAULT_TEMPLATE] if templates is None else templates
    if not isinstance(templates, list | tuple) or not all(
        isinstance(template, str) for template in templates
    ):
        return data  # reported by the settings themselves
    data["vocabularies"] = {}
    for name, named in sources.items():
        try:
            registered, lines = _read_placed(named, file, templates)
            data["vocabularies"][name] = registered.model_dump(mode="json", exclude_defaults=True)
            places |= {(name, label): place for label, place in lines.items()}
        except ConfigError as error:
            problems.append(str(error))
    return data


def check_selection(selection: Selection, registered: Mapping[str, RegisteredVocabulary]) -> None:
    """Raise `ConfigError` if `selection` names what no vocabulary has, which would be ignored."""
    tags = [tag for one in registered.values() for tag in one.vocabulary.tags]
    names = {loose_name(name) for tag in tags for name in (tag.label, *tag.aliases)}
    categories = {tag.category for tag in tags}
    labels = [("include", label) for label in selection.include_labels]
    labels += [("exclude", label) for label in selection.exclude_labels]
    wanted = [("include", category) for category in selection.include_categories]
    wanted += [("exclude", category) for category in selection.exclude_categories]
    unknown = [
        f"selection.{kind}_labels: {label!r} is in no vocabulary."
        for kind, label in labels
        if loose_name(label) not in names
    ]
    unknown += [
        f"selection.{kind}_categories: {category!r} is in no vocabulary."
        for kind, category in wanted
        if category not in categories
    ]
    if unknown:
        raise ConfigError("\n".join(unknown))


def _read_placed(
    named: NamedSource, file: ConfigFile, prompt_templates: Sequence[str]
) -> tuple[RegisteredVocabulary, dict[str, str]]:
    """Read one vocabulary of the configuration, and where each of its labels was read.

    A place is written as `general.yaml:17`.

    Args:
        named: Its entry in the configuration.
        file: The configuration.
        prompt_templates: Templates for a vocabulary without templates of its own.

    Raises:
        ConfigError: One line for each problem, with the file's line and the reason.
    """
    source = read_source(named, file)
    where = named.where
    if source.file is not None:
        content = read_vocabulary_file(file.folder / source.file)
    else:
        lined = file.content.part(named.labels_place, source.labels)
        content = VocabularyFile(inline_entries(source.labels or (), where, lined, file.name))
    templates = _first(source.prompt_templates, content.prompt_templates, tuple(prompt_templates))
    background = _first(source.background_prompts, content.background_prompts, DEFAULT_BACKGROUND)
    vocabulary = check_vocabulary(content.entries, templates, background, source.file or where)
    calibration = None
    if source.calibration is not None:
        calibration = read_calibration(file.folder / source.calibration)
        _check_fits(calibration, vocabulary.labels, templates, source.calibration)
    places = {entry.tag.label: entry.where for entry in content.entries}
    return RegisteredVocabulary(vocabulary=vocabulary, calibration=calibration), places


def _first(*choices: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the first choice that was made; the last one always is."""
    return next(choice for choice in choices if choice is not None)


def _check_fits(
    calibration: Calibration, labels: Sequence[str], templates: Sequence[str], file: str
) -> None:
    if calibration.prompt_templates != tuple(templates):
        raise ConfigError(
            f"{file}: was fitted with the prompt_templates {list(calibration.prompt_templates)}, "
            f"and the vocabulary has {list(templates)}; "
            "run siglip-serve calibrate again."
        )
    if calibration.tags and not any(label in calibration.tags for label in labels):
        raise ConfigError(
            f"{file}: none of its tags is in the vocabulary; it was fitted for another one."
        )
