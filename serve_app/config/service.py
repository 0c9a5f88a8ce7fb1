"""The YAML file that configures the whole service, and how it is read.

An unknown key is an error that names the nearest known key, because Serve itself ignores unknown
keys silently.

Not here: the blocks (`plugin.py`, `limits.py`, `serving.py`, `access.py`), what `auto` becomes
(`hardware/planner.py`), and how the file becomes a Serve config (`graph/serve_config.py`).
"""

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, model_validator

from serve_app.config.access import Access, Fetching, Telemetry
from serve_app.config.limits import Limits
from serve_app.config.plugin import PLUGIN_ALIASES, Plugins, SiglipPlugin
from serve_app.config.serving import Serving
from serve_app.config.settings import Settings
from serve_app.errors import ConfigError
from serve_app.images.limits import ImageDecoding, ImageLimits
from serve_app.tagging.config_files import ConfigFile
from serve_app.tagging.lined_yaml import LinedYaml, parse_lined_yaml
from serve_app.tagging.prompts import DEFAULT_TEMPLATE
from serve_app.tagging.registered import check_selection, with_vocabularies
from serve_app.tagging.settings import RegisteredVocabulary, Selection, TagSettings
from serve_app.tagging.vocabulary_sources import SHORTHANDS
from serve_app.untrusted.bounded_files import read_text
from serve_app.untrusted.nulls import without_nulls
from serve_app.untrusted.problems import problem_sentence
from serve_app.untrusted.yaml_files import MAX_DEPTH, MAX_YAML_BYTES

VOCABULARY_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class ServiceConfig(Settings):
    """The whole file, as written: `auto` stays `auto`, and the plan says what it becomes."""

    name: str = Field("siglip-serve", pattern=r"^[a-z][a-z0-9-]{0,40}$")
    revision: str | None = None
    plugins: Plugins = Plugins()
    vocabularies: dict[Annotated[str, Field(pattern=VOCABULARY_NAME)], RegisteredVocabulary] = {}
    default_vocabulary: str | None = None
    prompt_templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)
    selection: Selection = Selection()
    image_decoding: ImageDecoding = "fast"
    tag_banks: str | None = "auto"
    limits: Limits = Limits()
    hardware: str = Field("auto", pattern=r"^[A-Za-z0-9.+-]+$")
    serving: Serving = Serving()
    access: Access = Access()
    fetch: Fetching = Fetching()
    telemetry: Telemetry = Telemetry()
    _places: dict[tuple[str, str], str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.siglip.enabled:
            raise ValueError("plugins.siglip.enabled is false, so there is nothing to serve")
        if (
            self.default_vocabulary is not None
            and self.vocabularies
            and self.default_vocabulary not in self.vocabularies
        ):
            raise ValueError(
                f"default_vocabulary {self.default_vocabulary!r} is none of vocabularies: "
                f"{', '.join(self.vocabularies)}"
            )
        if self.selection.score == "calibrated" and any(
            v.calibration is None for v in self.vocabularies.values()
        ):
            raise ValueError(
                "selection.score is calibrated and a vocabulary has no calibration; "
                "name its file, or leave score out"
            )
        return self

    def place_of(self, vocabulary: str, label: str) -> str:
        """Return where a label was read, such as `general.yaml:17`, else the vocabulary's name."""
        return self._places.get((vocabulary, label), vocabulary)

    @property
    def siglip(self) -> SiglipPlugin:
        """The `plugins.siglip` block."""
        return self.plugins.siglip

    def tag_settings(self) -> TagSettings:
        """Return the vocabularies and the selection settings of the file."""
        plugin = self.siglip
        return TagSettings(
            vocabularies=self.vocabularies,
            default_vocabulary=self.default_vocabulary or next(iter(self.vocabularies)),
            selection=self.selection,
            confidence_threshold=plugin.confidence_threshold,
            max_tags=plugin.max_tags,
            sort_by=plugin.sort_by,
            include_raw_scores=plugin.include_raw_scores,
        )

    def image_limits(self) -> ImageLimits:
        """Return how images are decoded, and which images are refused before decoding."""
        return ImageLimits(
            max_pixels=self.limits.max_image_pixels,
            formats=self.limits.image_formats,
            max_side_px=self.limits.max_image_side,
            max_cost=self.limits.max_decode_cost,
            max_decode_bytes=self.limits.max_decode_bytes,
            decoding=self.image_decoding,
        )


def load_config(path: Path) -> ServiceConfig:
    """Read and check a configuration file.

    Raises:
        ConfigError: One line for each problem, with the key, what is wrong and the nearest known
            key.
    """
    content = _read_yaml(path)
    return _checked(content.data, ConfigFile(path.parent, str(path), content))


def parse_config(data: dict[str, Any], folder: Path = Path()) -> ServiceConfig:
    """Check a configuration in memory; the files that it names are relative to `folder`.

    Raises:
        ConfigError: One line for each problem.
    """
    return _checked(data, ConfigFile(folder))


def _checked(data: dict[str, Any], file: ConfigFile) -> ServiceConfig:
    problems: list[str] = []
    places: dict[tuple[str, str], str] = {}
    read = without_nulls(ServiceConfig, with_vocabularies(data, file, problems, places))
    try:
        config = ServiceConfig.model_validate_json(
            json.dumps(read, allow_nan=False)
        )  # JSON: strict, and lists may become tuples
    except ValidationError as error:
        raise ConfigError(
            "\n".join([*problems, *(_describe(problem, file) for problem in error.errors())])
        ) from error
    except (TypeError, ValueError) as error:
        message = (
            "\n".join(file.dates())
            or f"the file holds a value that is neither text, number, list nor block: {error}"
        )
        raise ConfigError(message) from error
    if problems:
        raise ConfigError("\n".join(problems))
    if not config.vocabularies:
        raise ConfigError(
            "labels: there are none; give a list, a file with one label a line, or vocabularies."
        )
    check_selection(config.selection, config.vocabularies)
    config._places.update(places)
    return _with_key_file(config, file.folder)


def _with_key_file(config: ServiceConfig, folder: Path) -> ServiceConfig:
    """Return a configuration whose API key file is an absolute path; `env` is not a file."""
    source = config.access.api_keys
    if source is None or source == "env":
        return config
    return config.model_copy(
        update={
            "access": config.access.model_copy(
                update={"api_keys": str((folder / source).absolute())}
            )
        }
    )


def _read_yaml(path: Path) -> LinedYaml:
    content = parse_lined_yaml(read_text(path, MAX_YAML_BYTES), path, MAX_DEPTH)
    if not isinstance(content.data, dict):
        raise ConfigError(f"{path} holds no settings; see configs/demo.yaml for an example.")
    return content


def _describe(problem: Any, file: ConfigFile) -> str:
    """Return one line: where, what is wrong, and the nearest known key."""
    location = [
        part
        for part in problem["loc"]
        if part not in ("constrained-int", "literal['auto']", "function-before")
    ]
    where = ".".join(str(part) for part in location) or "the file"
    if problem["type"] == "string_type" and (
        unquoted := file.unquoted(tuple(problem["loc"]), where)
    ):
        return unquoted
    return problem_sentence(problem, where, _known_keys(problem["loc"][:-1]))


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    block: type[BaseModel] = ServiceConfig
    for part in location:
        annotation = block.model_fields[part].annotation if part in block.model_fields else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            block = annotation
    others = {SiglipPlugin: [*PLUGIN_ALIASES, "custom_vocabulary"], ServiceConfig: list(SHORTHANDS)}
    return [*block.model_fields, *others.get(block, [])]
