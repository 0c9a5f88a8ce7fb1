"""From what the configuration says of its vocabularies to checked ones: files read, templates and
calibrations joined.

The configuration's `labels` and `calibration` are short for one vocabulary named `default`;
`vocabularies` names several.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from serve_app.errors import ConfigError
from serve_app.tagging.calibration import Calibration, read_calibration
from serve_app.tagging.lined_yaml import LinedYaml, Place
from serve_app.tagging.problems import quoted
from serve_app.tagging.prompts import DEFAULT_TEMPLATE
from serve_app.tagging.settings import RegisteredVocabulary, Selection
from serve_app.tagging.vocabulary import DEFAULT_BACKGROUND, loose_name
from serve_app.tagging.vocabulary_blocks import VocabularyFile, inline_entries
from serve_app.tagging.vocabulary_checks import check_vocabulary
from serve_app.tagging.vocabulary_files import read_vocabulary_file

DEFAULT_NAME = "default"
"""Of the vocabulary that `labels` gives."""
SHORTHANDS = ("labels", "calibration")
"""Keys beside `plugins` that stand for a vocabulary named `default`; `custom_vocabulary` is the
plugin's word for `labels`."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """Where a configuration was read from; nothing is known of one that was in memory already.

    Attributes:
        folder: From which files that it names are looked for.
        name: Name of the file in messages.
        content: The file with its lines.
    """

    folder: Path
    name: str = ""
    content: LinedYaml = field(default_factory=lambda: LinedYaml(None))

    def place(self, place: Place) -> str:
        """Return the beginning of a message about a value: the file and line, or nothing."""
        return f"{self.name}:{self.content.line_of(place)}: " if place in self.content.lines else ""

    def unquoted(self, place: Place, where: str) -> str | None:
        """Return a sentence about a value that YAML does not read as text, or None if it does."""
        problem = self.content.unquoted.get(place)
        return None if problem is None else f"{self.place(place)}{where}: {problem}."

    def dates(self) -> list[str]:
        """Return a sentence about every value that YAML reads as a date, which no setting is."""
        places = [place for place in self.content.unquoted if self._is_date(place)]
        return [self.unquoted(place, ".".join(map(str, place))) or "" for place in places]

    def _is_date(self, place: Place) -> bool:
        value = self.content.data
        for part in place:
            value = value[part]
        return isinstance(value, datetime.date)


@dataclass(frozen=True, slots=True)
class _Named:
    """What the configuration has for one vocabulary.

    Attributes:
        where: Its key, for messages.
        place: The same, as a path into the file.
        value: A file's name, a list of labels, or a block of `VocabularySource`.
        labels_place: Of its list of labels.
    """

    where: str
    place: Place
    value: Any
    labels_place: Place

    @classmethod
    def at(cls, place: Place, value: Any) -> "_Named":
        """Return a vocabulary whose list of labels is its value, or in the block that is its
        value.
        """
        labels_place = (*place, "labels") if isinstance(value, Mapping) else place
        return cls(".".join(map(str, place)), place, value, labels_place)


class VocabularySource(BaseModel):
    """One vocabulary as the configuration writes it: a file or a list of labels, and what holds for
    it alone.
    """

    model_config = ConfigDict(extra="forbid")

    file: str | None = None
    labels: tuple[Any, ...] | None = None
    prompt_templates: tuple[str, ...] | None = None
    background_prompts: tuple[str, ...] | None = None
    calibration: str | None = None


def read_registered(
    value: Any, folder: Path, where: str, prompt_templates: Sequence[str]
) -> RegisteredVocabulary:
    """Read one vocabulary that is in memory already, such as the name of a file; see
    `_read_placed`.
    """
    return _read_placed(_Named(where, (), value, ()), ConfigFile(folder), prompt_templates)[0]


def _read_placed(
    named: _Named, file: ConfigFile, prompt_templates: Sequence[str]
) -> tuple[RegisteredVocabulary, dict[str, str]]:
    """Read one vocabulary of the configuration, and where each of its labels is, such as
    `general.yaml:17`.

    Args:
        named: What the configuration has for it.
        file: The configuration.
        prompt_templates: For a vocabulary that has none, and whose file has none.

    Raises:
        ConfigError: One line for each problem, with the file's line and the reason.
    """
    source = _source(named, file)
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


def with_vocabularies(
    data: dict[str, Any], file: ConfigFile, problems: list[str], places: dict[tuple[str, str], str]
) -> dict[str, Any]:
    """Read every vocabulary that is named, and the shorthands for one.

    What is wrong with them is added to `problems`, where their labels stand to `places`.
    """
    data, sources = _take_sources(data, file, problems)
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


def _take_sources(
    data: dict[str, Any], file: ConfigFile, problems: list[str]
) -> tuple[dict[str, Any], dict[str, _Named]]:
    """Return the configuration without what names vocabularies, and each vocabulary's key and
    value; the shorthand's first.
    """
    data = dict(data)
    plugins = data.get("plugins")
    plugin = plugins.get("siglip") if isinstance(plugins, dict) else None
    custom = None
    if isinstance(plugin, dict) and "custom_vocabulary" in plugin:
        custom = plugin["custom_vocabulary"]
        data["plugins"] = {
            **data["plugins"],
            "siglip": {key: value for key, value in plugin.items() if key != "custom_vocabulary"},
        }
    labels, calibration = (data.pop(key, None) for key in SHORTHANDS)
    named = data.pop("vocabularies", None)
    named = {} if named is None else named
    if not isinstance(named, dict):
        unquoted = file.unquoted(("vocabularies",), "vocabularies")
        problems.append(
            unquoted
            or f"vocabularies: must be a block of names, each a file, a list of labels or a block (got {named!r})."
        )
        named = {}
    sources: dict[str, _Named] = {}
    for name, value in named.items():
        if not isinstance(name, str):
            problems.append(f"vocabularies: the name {name!r} is not text; quote it.")
            continue
        sources[name] = _Named.at(("vocabularies", name), value)
    own = custom if labels is None else labels
    if own is None:
        if calibration is not None:
            problems.append(
                "calibration: belongs to labels, which are not given; for vocabularies name it in the vocabulary's block."
            )
        return data, sources
    if DEFAULT_NAME in sources:
        problems.append(
            f"labels: vocabularies already has one named {DEFAULT_NAME}; keep one of them."
        )
    if labels is not None and custom is not None:
        problems.append("custom_vocabulary: labels say the same beside plugins; keep one of them.")
    shorthand = _Named.at(("labels",), own)
    if labels is None:
        shorthand = replace(
            _Named.at(("plugins", "siglip", "custom_vocabulary"), own), where="custom_vocabulary"
        )
    if calibration is not None:
        shorthand = replace(shorthand, value=_as_block(own) | {"calibration": calibration})
    return data, {DEFAULT_NAME: shorthand} | sources


def _as_block(value: Any) -> dict[str, Any]:
    """Return a file's name, or a list of labels, as a block of `VocabularySource`."""
    if isinstance(value, Mapping):
        return dict(value)
    return {"file": value} if isinstance(value, str) else {"labels": value}


def check_selection(selection: Selection, registered: Mapping[str, RegisteredVocabulary]) -> None:
    """Raise `ConfigError` where `selection` names what no vocabulary has: it would be left out
    without a word.
    """
    vocabularies = [one.vocabulary for one in registered.values()]
    names = {
        loose_name(name)
        for v in vocabularies
        for tag in v.tags
        for name in (tag.label, *tag.aliases)
    }
    categories = {tag.category for v in vocabularies for tag in v.tags}
    unknown = [
        f"selection.{kind}_labels: {label!r} is in no vocabulary."
        for kind, labels in (
            ("include", selection.include_labels),
            ("exclude", selection.exclude_labels),
        )
        for label in labels
        if loose_name(label) not in names
    ] + [
        f"selection.{kind}_categories: {category!r} is in no vocabulary."
        for kind, wanted in (
            ("include", selection.include_categories),
            ("exclude", selection.exclude_categories),
        )
        for category in wanted
        if category not in categories
    ]
    if unknown:
        raise ConfigError("\n".join(unknown))


def _source(named: _Named, file: ConfigFile) -> VocabularySource:
    value = named.value
    where = named.where
    if isinstance(value, str):
        return VocabularySource(file=value)
    if isinstance(value, list | tuple):
        return VocabularySource(labels=tuple(value))
    if not isinstance(value, Mapping):
        is_text = not isinstance(value, bool | None)
        unquoted = file.unquoted(named.place, where) if is_text else None
        raise ConfigError(
            unquoted
            or f"{where}: must be a file's name, a list of labels or a block with file or labels (got {value!r})."
        )
    try:
        source = VocabularySource.model_validate(value)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_source_problem(p, named, file) for p in error.errors())
        ) from error
    if (source.file is None) == (source.labels is None):
        raise ConfigError(f"{where}: give either file or labels.")
    return source


def _source_problem(problem: Any, named: _Named, file: ConfigFile) -> str:
    key = f"{named.where}.{'.'.join(map(str, problem['loc']))}"
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; known are {', '.join(VocabularySource.model_fields)}."
    if unquoted := file.unquoted((*named.place, *problem["loc"]), key):
        return unquoted
    message = problem["msg"]
    return f"{key}: {message[0].lower()}{message[1:]} (got {quoted(problem['input'])})."


def _check_fits(
    calibration: Calibration, labels: Sequence[str], templates: Sequence[str], file: str
) -> None:
    if calibration.prompt_templates != tuple(templates):
        raise ConfigError(
            f"{file}: was fitted with the prompt_templates {list(calibration.prompt_templates)}, and the vocabulary has {list(templates)}; "
            "run siglip-serve calibrate again."
        )
    if calibration.tags and not any(label in calibration.tags for label in labels):
        raise ConfigError(
            f"{file}: none of its tags is in the vocabulary; it was fitted for another one."
        )
