"""The one YAML that configures everything: frozen settings, read strictly.

`plugins.siglip` is the plugin schema key for key, with the spellings that its shipped code accepts;
everything of ours stands beside it. Unknown keys are an error that names the nearest known one,
since Serve itself ignores them silently.

Not here: what `auto` becomes (`hardware/`), how it becomes a Serve config (`graph/render.py`).
"""

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, model_validator

from serve_app.config.access import Access, Fetching, Telemetry
from serve_app.config.serving import Count, Seconds, Serving, Settings
from serve_app.errors import ConfigError
from serve_app.siglip.images.limits import ImageDecoding, ImageLimits
from serve_app.siglip.naflex import MAX_PATCHES, MIN_PATCHES
from serve_app.siglip.precision import Precision
from serve_app.tagging.config_files import ConfigFile
from serve_app.tagging.lined_yaml import LinedYaml, parse_lined_yaml
from serve_app.tagging.prompts import DEFAULT_TEMPLATE
from serve_app.tagging.registered import check_selection, with_vocabularies
from serve_app.tagging.selection import SortBy
from serve_app.tagging.settings import RegisteredVocabulary, Selection, TagSettings
from serve_app.tagging.vocabulary_sources import SHORTHANDS
from serve_app.untrusted.bounded_files import read_text
from serve_app.untrusted.nulls import without_nulls
from serve_app.untrusted.yaml_files import MAX_DEPTH, MAX_YAML_BYTES

DEMO_MODEL = "demo"
DEMO_CHECKPOINT = Path(__file__).parents[1] / "demo" / "checkpoint"
MODEL_VARIANTS = {
    "base": "google/siglip-base-patch16-224",
    "so400m": "google/siglip-so400m-patch14-384",
    "base-v2": "google/siglip2-base-patch16-224",
    "large-v2": "google/siglip2-large-patch16-512",
    "so400m-v2": "google/siglip2-so400m-patch14-384",
    "giant-v2": "google/siglip2-giant-opt-patch16-384",
    "base-naflex": "google/siglip2-base-patch16-naflex",
}
"""The plugin's short names.

Source: the plugin's `configure()`; its `plugin.toml` spells them `v2-base`, also taken.
"""
PLUGIN_ALIASES = {
    "variant": "model",
    "model_variant": "model",
    "threshold": "confidence_threshold",
    "limit": "max_tags",
}
VOCABULARY_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"]
ALL_FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)
MAX_QUOTED = 200
"""Characters of a wrong value that a message repeats."""
HELD_FOR_EACH_BYTE = 2
"""Bytes that a byte of a body takes at the peak, in every transport: raw bodies while their chunks
are joined, forms while a file is read, JSON while base64 is decoded. Measured 2026-11: 1.9, 1.1 and
1.9."""
AUTO_BATCH_SIZE = 16
"""Images a batch where `batch_size` is `auto`: the upper end of the seed table for 16 GB of
memory."""


class SiglipPlugin(Settings):
    """`plugins.siglip`, the plugin schema."""

    enabled: bool = True
    model: str = Field("google/siglip2-so400m-patch14-384", min_length=1)
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    quantization: Literal["none", "8bit", "4bit"] = "none"
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    confidence_threshold: float = Field(0.01, ge=0, le=1)
    max_tags: Count = 50
    max_num_patches: int = Field(256, ge=MIN_PATCHES, le=MAX_PATCHES)
    include_raw_scores: bool = False
    sort_by: SortBy = "confidence"

    @model_validator(mode="before")
    @classmethod
    def _accept_other_spellings(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        renamed: dict[str, Any] = {}
        for key, value in data.items():
            known = PLUGIN_ALIASES.get(str(key), str(key))
            if known in renamed:
                raise ValueError(
                    f"{key} says the same as another key of this block; keep one of them, best {known}"
                )
            renamed[known] = value
        if isinstance(renamed.get("model"), str):
            renamed["model"] = _hub_id(renamed["model"])
        return renamed

    @property
    def precision(self) -> Precision:
        """What the towers are asked to run as."""
        return Precision(self.device, self.dtype, self.attention, self.quantization)

    @property
    def model_source(self) -> str:
        """The folder or hub id to load: the embedded checkpoint for `demo`."""
        return str(DEMO_CHECKPOINT) if self.model == DEMO_MODEL else self.model

    @property
    def model_shown(self) -> str:
        """What clients are told: the hub id, or a folder's name without where it lies."""
        return (
            Path(self.model).name
            if Path(self.model).is_absolute() or Path(self.model).is_dir()
            else self.model
        )

    @property
    def resolved_batch_size(self) -> int:
        """Most images in one forward pass."""
        return AUTO_BATCH_SIZE if self.batch_size == "auto" else self.batch_size


class Plugins(Settings):
    """The `plugins` block; this service has one."""

    siglip: SiglipPlugin = SiglipPlugin()


class Limits(Settings):
    """What one request may carry."""

    max_body_bytes: Count = 64 * 2**20
    max_image_bytes: Count = 20 * 2**20
    max_image_pixels: Count = 50_000_000
    max_image_side: Count = 32_768
    max_decode_cost: float = Field(10.0, gt=0)
    max_decode_bytes: Count = 200 * 2**20
    max_images_per_request: Count = 64
    max_embeddings_per_request: Count = 1_024
    max_labels_per_request: Count = 1_000
    max_cached_label_bytes: Count = 256 * 2**20
    max_response_bytes: Count = 16 * 2**20
    max_held_bytes: Count = 384 * 2**20
    max_concurrent_requests: Count = 512
    body_timeout_s: Seconds = 30.0
    write_timeout_s: Seconds = 30.0
    image_formats: tuple[ImageFormat, ...] = Field(ALL_FORMATS, min_length=1)

    @model_validator(mode="after")
    def _check_held(self) -> Self:
        needed = HELD_FOR_EACH_BYTE * self.max_body_bytes + self.max_response_bytes
        if self.max_held_bytes < needed:
            raise ValueError(
                f"max_held_bytes {self.max_held_bytes:,} is less than one request may hold; use at least {needed:,} (twice max_body_bytes "
                "plus max_response_bytes), or lower those"
            )
        return self


class ServiceConfig(Settings):
    """The whole file."""

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
                f"default_vocabulary {self.default_vocabulary!r} is none of vocabularies: {', '.join(self.vocabularies)}"
            )
        if self.selection.score == "calibrated" and any(
            v.calibration is None for v in self.vocabularies.values()
        ):
            raise ValueError(
                "selection.score is calibrated and a vocabulary has no calibration; name its file, or leave score out"
            )
        return self

    def place_of(self, vocabulary: str, label: str) -> str:
        """Return where a label was read, such as `general.yaml:17`; the vocabulary's name where
        that is not known.
        """
        return self._places.get((vocabulary, label), vocabulary)

    @property
    def siglip(self) -> SiglipPlugin:
        """The plugin's block."""
        return self.plugins.siglip

    def tag_settings(self) -> TagSettings:
        """Return the vocabularies and selection that the file asks for."""
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
        """Return how images are decoded, and what is refused before that."""
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
    """Check a configuration that is already in memory; files it names are looked for from `folder`.

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
    """Look for the file of API keys from the configuration's folder; `env` is no file."""
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


def _hub_id(model: str) -> str:
    swapped = "-".join(reversed(model.split("-", 1))) if model.startswith("v2-") else model
    return MODEL_VARIANTS.get(swapped, model)


def _describe(problem: Any, file: ConfigFile) -> str:
    """Return one line: where, what is wrong, and the nearest known key."""
    location = [
        part
        for part in problem["loc"]
        if part not in ("constrained-int", "literal['auto']", "function-before")
    ]
    where = ".".join(str(part) for part in location) or "the file"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(problem["loc"][:-1])
        nearest = difflib.get_close_matches(
            str(problem["loc"][-1])[:MAX_QUOTED], known, n=1, cutoff=0.5
        )
        return f"{where}: unknown key; " + (
            f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known)}."
        )
    if problem["type"] == "string_type" and (
        unquoted := file.unquoted(tuple(problem["loc"]), where)
    ):
        return unquoted
    message = problem["msg"].removeprefix("Value error, ")
    hidden = problem["type"] == "value_error" or isinstance(problem["input"], dict)
    shown = "" if hidden else f" (got {repr(problem['input'])[:MAX_QUOTED]})"
    return f"{where}: {message[0].lower()}{message[1:]}{shown}"


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    block: type[BaseModel] = ServiceConfig
    for part in location:
        annotation = block.model_fields[part].annotation if part in block.model_fields else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            block = annotation
    others = {SiglipPlugin: [*PLUGIN_ALIASES, "custom_vocabulary"], ServiceConfig: list(SHORTHANDS)}
    return [*block.model_fields, *others.get(block, [])]
