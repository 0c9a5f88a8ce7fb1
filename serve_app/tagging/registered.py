"""From what the configuration says of its vocabularies to checked ones: files read, templates and calibrations joined.

The configuration's `labels` and `calibration` are short for one vocabulary named `default`; `vocabularies` names several.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from serve_app.errors import ConfigError
from serve_app.tagging.calibration import Calibration, read_calibration
from serve_app.tagging.prompts import DEFAULT_TEMPLATE
from serve_app.tagging.settings import RegisteredVocabulary, Selection
from serve_app.tagging.vocabulary import DEFAULT_BACKGROUND, canonical_name
from serve_app.tagging.vocabulary_files import VocabularyFile, check_vocabulary, inline_entries, read_vocabulary_file

DEFAULT_NAME = "default"
"""Of the vocabulary that `labels` gives."""
SHORTHANDS = ("labels", "calibration")
"""Keys beside `plugins` that stand for a vocabulary named `default`; `custom_vocabulary` is the plugin's word for `labels`."""


class VocabularySource(BaseModel):
    """One vocabulary as the configuration writes it: a file or a list of labels, and what holds for it alone."""

    model_config = ConfigDict(extra="forbid")

    file: str | None = None
    labels: tuple[Any, ...] | None = None
    prompt_templates: tuple[str, ...] | None = None
    background_prompts: tuple[str, ...] | None = None
    calibration: str | None = None


def read_registered(value: Any, folder: Path, where: str, prompt_templates: Sequence[str]) -> RegisteredVocabulary:
    """Read one vocabulary of the configuration; see `read_placed`."""
    return read_placed(value, folder, where, prompt_templates)[0]


def read_placed(value: Any, folder: Path, where: str, prompt_templates: Sequence[str]) -> tuple[RegisteredVocabulary, dict[str, str]]:
    """Read one vocabulary of the configuration, and where each of its labels stands, such as `general.yaml:17`.

    Args:
        value: A file's name, a list of labels, or a block of `VocabularySource`.
        folder: From which files are looked for.
        where: The key that it stands under.
        prompt_templates: Where neither it nor its file has some.

    Raises:
        ConfigError: One line for each problem, with the file's line and the reason.
    """
    source = _source(value, where)
    if source.file is not None:
        content = read_vocabulary_file(folder / source.file)
    else:
        content = VocabularyFile(inline_entries(source.labels or (), where))
    templates = source.prompt_templates or content.prompt_templates or tuple(prompt_templates)
    background = next((b for b in (source.background_prompts, content.background_prompts) if b is not None), DEFAULT_BACKGROUND)
    vocabulary = check_vocabulary(content.entries, templates, background, source.file or where)
    calibration = None
    if source.calibration is not None:
        calibration = read_calibration(folder / source.calibration)
        _check_fits(calibration, vocabulary.labels, templates, source.calibration)
    places = {entry.tag.label: entry.where for entry in content.entries}
    return RegisteredVocabulary(vocabulary=vocabulary, calibration=calibration), places


def with_vocabularies(data: dict[str, Any], folder: Path, problems: list[str], places: dict[tuple[str, str], str]) -> dict[str, Any]:
    """Read every vocabulary that is named, and the shorthands for one.

    What is wrong with them is added to `problems`, where their labels stand to `places`.
    """
    data, sources = _take_sources(data, problems)
    templates = data.get("prompt_templates", [DEFAULT_TEMPLATE])
    if not isinstance(templates, list | tuple) or not all(isinstance(template, str) for template in templates):
        return data  # told by the settings themselves
    data["vocabularies"] = {}
    for name, (where, value) in sources.items():
        try:
            registered, lines = read_placed(value, folder, where, templates)
            data["vocabularies"][name] = registered.model_dump(mode="json", exclude_defaults=True)
            places |= {(name, label): place for label, place in lines.items()}
        except ConfigError as error:
            problems.append(str(error))
    return data


def _take_sources(data: dict[str, Any], problems: list[str]) -> tuple[dict[str, Any], dict[str, tuple[str, Any]]]:
    """Return the configuration without what names vocabularies, and each vocabulary's key and value; the shorthand's first."""
    data = dict(data)
    plugins = data.get("plugins")
    plugin = plugins.get("siglip") if isinstance(plugins, dict) else None
    custom = None
    if isinstance(plugin, dict) and "custom_vocabulary" in plugin:
        custom = plugin["custom_vocabulary"]
        data["plugins"] = {**data["plugins"], "siglip": {key: value for key, value in plugin.items() if key != "custom_vocabulary"}}
    labels, calibration = (data.pop(key, None) for key in SHORTHANDS)
    named = data.pop("vocabularies", None) or {}
    if not isinstance(named, dict):
        problems.append(f"vocabularies: must be a block of names, each a file, a list of labels or a block (got {named!r}).")
        named = {}
    sources = {str(name): (f"vocabularies.{name}", value) for name, value in named.items()}
    own = labels or custom
    if not own:
        if calibration is not None:
            problems.append("calibration: belongs to labels, which are not given; for vocabularies name it in the vocabulary's block.")
        return data, sources
    if DEFAULT_NAME in sources:
        problems.append(f"labels: vocabularies already has one named {DEFAULT_NAME}; keep one of them.")
    if labels and custom:
        problems.append("custom_vocabulary: labels say the same beside plugins; keep one of them.")
    block = {"file": own} if isinstance(own, str) else {"labels": own} if isinstance(own, list | tuple) else own
    if calibration is not None and isinstance(block, dict):
        block = block | {"calibration": calibration}
    return data, {DEFAULT_NAME: ("labels" if labels else "custom_vocabulary", block)} | sources


def check_selection(selection: Selection, registered: Mapping[str, RegisteredVocabulary]) -> None:
    """Raise `ConfigError` where `selection` names what no vocabulary has: it would be left out without a word."""
    vocabularies = [one.vocabulary for one in registered.values()]
    names = {canonical_name(name) for v in vocabularies for tag in v.tags for name in (tag.label, *tag.aliases)}
    categories = {tag.category for v in vocabularies for tag in v.tags}
    unknown = [
        f"selection.{kind}_labels: {label!r} is in no vocabulary."
        for kind, labels in (("include", selection.include_labels), ("exclude", selection.exclude_labels))
        for label in labels
        if canonical_name(label) not in names
    ] + [
        f"selection.{kind}_categories: {category!r} is in no vocabulary."
        for kind, wanted in (("include", selection.include_categories), ("exclude", selection.exclude_categories))
        for category in wanted
        if category not in categories
    ]
    if unknown:
        raise ConfigError("\n".join(unknown))


def _source(value: Any, where: str) -> VocabularySource:
    if isinstance(value, str):
        return VocabularySource(file=value)
    if isinstance(value, list | tuple):
        return VocabularySource(labels=tuple(value))
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: must be a file's name, a list of labels or a block with file or labels (got {value!r}).")
    try:
        source = VocabularySource.model_validate(value)
    except ValidationError as error:
        known = ", ".join(VocabularySource.model_fields)
        raise ConfigError(
            "\n".join(f"{where}.{'.'.join(map(str, p['loc']))}: {p['msg']}; known are {known}." for p in error.errors())
        ) from error
    if (source.file is None) == (source.labels is None):
        raise ConfigError(f"{where}: give either file or labels.")
    return source


def _check_fits(calibration: Calibration, labels: Sequence[str], templates: Sequence[str], file: str) -> None:
    if calibration.prompt_templates != tuple(templates):
        raise ConfigError(
            f"{file}: was fitted with the prompt_templates {list(calibration.prompt_templates)}, and the vocabulary has {list(templates)}; "
            "run siglip-serve calibrate again."
        )
    if calibration.tags and not any(label in calibration.tags for label in labels):
        raise ConfigError(f"{file}: none of its tags is in the vocabulary; it was fitted for another one.")
