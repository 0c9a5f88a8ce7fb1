"""The entries of the configuration that name vocabularies: a file, a list of labels, or a block.

`labels` and `calibration` are short for one vocabulary named `default`; `vocabularies` names
several.

Not here: reading what an entry names (`registered.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from serve_app.errors import ConfigError
from serve_app.tagging.config_files import ConfigFile
from serve_app.tagging.lined_yaml import Place
from serve_app.untrusted.problems import problem_sentence

DEFAULT_NAME = "default"
"""Name of the vocabulary that `labels` gives."""
SHORTHANDS = ("labels", "calibration")
"""Keys beside `plugins` for a vocabulary named `default`. The plugin's `custom_vocabulary` means
the same as `labels`."""


@dataclass(frozen=True, slots=True)
class NamedSource:
    """The entry of the configuration for one vocabulary.

    Attributes:
        where: Its key, for messages.
        place: The key as a path into the file.
        value: Name of a file, a list of labels, or a block of `VocabularySource`.
        labels_place: Path of its list of labels.
    """

    where: str
    place: Place
    value: Any
    labels_place: Place

    @classmethod
    def at(cls, place: Place, value: Any) -> "NamedSource":
        """Return the entry of a key, whose value is a list of labels or has one."""
        labels_place = (*place, "labels") if isinstance(value, Mapping) else place
        return cls(".".join(map(str, place)), place, value, labels_place)


class VocabularySource(BaseModel):
    """A vocabulary in the configuration: a file or a list of labels, and its own settings."""

    model_config = ConfigDict(extra="forbid")

    file: str | None = None
    labels: tuple[Any, ...] | None = None
    prompt_templates: tuple[str, ...] | None = None
    background_prompts: tuple[str, ...] | None = None
    calibration: str | None = None


def take_sources(
    data: dict[str, Any], file: ConfigFile, problems: list[str]
) -> tuple[dict[str, Any], dict[str, NamedSource]]:
    """Return the configuration without the keys that name vocabularies, and their entries.

    Args:
        data: The configuration.
        file: Where it was read from.
        problems: A line is added for each problem.
    """
    data, custom = _without_custom_vocabulary(dict(data))
    labels, calibration = (data.pop(key, None) for key in SHORTHANDS)
    sources = _named_sources(data.pop("vocabularies", None), file, problems)
    if labels is None and custom is None:
        if calibration is not None:
            problems.append(
                "calibration: belongs to labels, which are not given; for vocabularies name it in "
                "the vocabulary's block."
            )
        return data, sources

    if DEFAULT_NAME in sources:
        problems.append(
            f"labels: vocabularies already has one named {DEFAULT_NAME}; keep one of them."
        )
    if labels is not None and custom is not None:
        problems.append("custom_vocabulary: labels say the same beside plugins; keep one of them.")
    return data, {DEFAULT_NAME: _shorthand(labels, custom, calibration)} | sources


def _without_custom_vocabulary(data: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Return the configuration without the plugin's `custom_vocabulary`, and its value."""
    plugins = data.get("plugins")
    plugin = plugins.get("siglip") if isinstance(plugins, dict) else None
    if not isinstance(plugin, dict) or "custom_vocabulary" not in plugin:
        return data, None
    others = {key: value for key, value in plugin.items() if key != "custom_vocabulary"}
    data["plugins"] = {**data["plugins"], "siglip": others}
    return data, plugin["custom_vocabulary"]


def _named_sources(named: Any, file: ConfigFile, problems: list[str]) -> dict[str, NamedSource]:
    """Return the entries of the `vocabularies` block."""
    if named is None:
        return {}
    if not isinstance(named, dict):
        problems.append(
            file.unquoted(("vocabularies",), "vocabularies")
            or "vocabularies: must be a block of names, each a file, a list of labels or a block "
            f"(got {named!r})."
        )
        return {}
    sources: dict[str, NamedSource] = {}
    for name, value in named.items():
        if isinstance(name, str):
            sources[name] = NamedSource.at(("vocabularies", name), value)
        else:
            problems.append(f"vocabularies: the name {name!r} is not text; quote it.")
    return sources


def _shorthand(labels: Any, custom: Any, calibration: Any) -> NamedSource:
    """Return the entry of the vocabulary that `labels` or `custom_vocabulary` gives."""
    if labels is not None:
        named = NamedSource.at(("labels",), labels)
    else:
        place = ("plugins", "siglip", "custom_vocabulary")
        named = replace(NamedSource.at(place, custom), where="custom_vocabulary")
    if calibration is None:
        return named
    return replace(named, value=_as_block(named.value) | {"calibration": calibration})


def read_source(named: NamedSource, file: ConfigFile) -> VocabularySource:
    """Return the entry of a vocabulary as a block; raises `ConfigError` if it is not one."""
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
            or f"{where}: must be a file's name, a list of labels or a block with file or labels "
            f"(got {value!r})."
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


def _as_block(value: Any) -> dict[str, Any]:
    """Return a file's name, or a list of labels, as a block of `VocabularySource`."""
    if isinstance(value, Mapping):
        return dict(value)
    return {"file": value} if isinstance(value, str) else {"labels": value}


def _source_problem(problem: Any, named: NamedSource, file: ConfigFile) -> str:
    key = f"{named.where}.{'.'.join(map(str, problem['loc']))}"
    if unquoted := file.unquoted((*named.place, *problem["loc"]), key):
        return unquoted
    return problem_sentence(problem, key, VocabularySource.model_fields)
