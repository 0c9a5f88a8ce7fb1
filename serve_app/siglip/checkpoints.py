"""Reads and checks the JSON files of a checkpoint folder before any weight is loaded.

A checkpoint that transformers would load but run wrongly is an error here. With transformers, a
missing `tokenizer.json` gives a vocabulary of five tokens, and a missing preprocessor
configuration gives the default one.

Not here: finding or downloading the folder (`hub.py`), the image processor's settings
(`image_settings.py`), unsupported parts of a model (`model_config.py`), loading the towers
(`towers/tower.py`).
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from serve_app.errors import ConfigError
from serve_app.siglip.image_settings import read_image_settings
from serve_app.siglip.json_files import read_json
from serve_app.siglip.model_config import check_model_config
from serve_app.siglip.processor_values import Channels

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
DEFAULT_CONTEXT_LENGTH = 64
"""Number of tokens if `config.json` has none: the default of transformers' `SiglipTextConfig`."""
MAX_COUNT = 10_000_000
"""Upper bound of any size in `config.json`. The largest one, SigLIP 2's vocabulary, is 256,000."""
TOKENIZERS = {
    "SiglipTokenizer": "spiece.model",
    "Siglip2Tokenizer": "tokenizer.json",
    "GemmaTokenizer": "tokenizer.json",
}
"""Supported values of `tokenizer_class`, with the file that each reads.

Fixed-resolution SigLIP 2 checkpoints name Gemma's class.
"""
ANY_TOKENIZER = ("PreTrainedTokenizer", "TokenizersBackend")
"""Class names that transformers 4 and 5 write for a tokenizer of no specific class.

They do not determine the file.
"""


class Family(StrEnum):
    """The three kinds of checkpoint, which differ in tokenizer, resampling and batch layout."""

    SIGLIP = "siglip"
    SIGLIP2 = "siglip2"
    NAFLEX = "siglip2-naflex"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder and the values that preprocessing, tokenization and scoring need.

    Attributes:
        folder: The folder of the files.
        name: The hub id or the folder's name, as clients see it.
        revision: The requested branch, tag or commit, or None.
        family: The kind of SigLIP.
        image_size_px: Side of the square input in pixels; None for NaFlex.
        patch_size_px: Patch side in pixels.
        resample: Pillow's filter number.
        pixel_scale: Factor per channel that a pixel from 0 to 255 is multiplied by.
        pixel_offset: Summand per channel that is added after scaling.
        context_length: Number of tokens that every text is padded to.
        vocab_size: Rows of the token embedding.
        embedding_width: D.
    """

    folder: Path
    name: str
    revision: str | None
    family: Family
    image_size_px: int | None
    patch_size_px: int
    resample: int
    pixel_scale: Channels
    pixel_offset: Channels
    context_length: int
    vocab_size: int
    embedding_width: int

    @property
    def strips_punctuation(self) -> bool:
        """Whether the towers were trained on text without punctuation."""
        return self.family is Family.SIGLIP


def read_checkpoint(
    folder: Path, name: str | None = None, revision: str | None = None
) -> Checkpoint:
    """Read and check the JSON files of a checkpoint folder.

    Raises:
        ConfigError: A file is missing or does not describe a SigLIP checkpoint; the message names
            the file.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is not a folder; use a checkpoint folder or a hub id such as "
            "google/siglip2-base-patch16-224."
        )
    config = read_json(folder / "config.json", "it says which model the weights belong to")
    if not (folder / WEIGHTS).is_file() and not (folder / WEIGHTS_INDEX).is_file():
        raise ConfigError(
            f"{folder} has neither {WEIGHTS} nor {WEIGHTS_INDEX}; only safetensors weights with "
            "these names are loaded. Rename a variant such as model.fp16.safetensors."
        )
    family = _family(folder, config)
    _check_tokenizer_files(folder, family)
    vision = _section(folder, config, "vision_config")
    text = _section(folder, config, "text_config")

    config_file = folder / "config.json"
    image_size_px = None
    if family is not Family.NAFLEX:
        image_size_px = _count(config_file, vision, "image_size", 224)
    patch_size_px = _count(config_file, vision, "patch_size", 16)
    context_length = _count(config_file, text, "max_position_embeddings", DEFAULT_CONTEXT_LENGTH)
    vocab_size = _count(config_file, text, "vocab_size", 32_000)

    check_model_config(folder, config)
    images = read_image_settings(folder, image_size_px, patch_size_px)
    return Checkpoint(
        folder=folder,
        name=name or folder.name,
        revision=revision,
        family=family,
        image_size_px=images.size_px,
        patch_size_px=patch_size_px,
        resample=images.resample,
        pixel_scale=images.pixel_scale,
        pixel_offset=images.pixel_offset,
        context_length=context_length,
        vocab_size=vocab_size,
        embedding_width=_embedding_width(config_file, vision, text),
    )


def weight_files(folder: Path) -> dict[str, Path]:
    """Return the shard of each tensor, or an empty table if one file has them all.

    As in transformers, an index is ignored if the folder has a `model.safetensors`.
    """
    index = folder / WEIGHTS_INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return {}
    table = read_json(index, "it says which file holds which tensor").get("weight_map", {})
    if not isinstance(table, dict) or not all(_is_name(file) for file in table.values()):
        raise ConfigError(
            f"{index}: weight_map must map each tensor to the name of a file in the same folder."
        )
    return {tensor: folder / file for tensor, file in table.items()}


def weight_paths(folder: Path) -> list[Path]:
    """Return the safetensors files of the weights in the order in which transformers loads them."""
    return sorted(set(weight_files(folder).values())) or [folder / WEIGHTS]


def _is_name(file: Any) -> bool:
    """Return whether a value names a file directly in the folder."""
    return (
        isinstance(file, str)
        and file not in ("", ".", "..")
        and "/" not in file
        and "\0" not in file
    )


def _family(folder: Path, config: dict[str, Any]) -> Family:
    match config.get("model_type"):
        case "siglip2":
            return Family.NAFLEX
        case "siglip":
            if _tokenizer_file(folder, config) == "spiece.model":
                return Family.SIGLIP
            return Family.SIGLIP2
        case other:
            shown = str(other)[:100]
            raise ConfigError(
                f"{folder / 'config.json'} has model_type {shown!r}; "
                "only 'siglip' and 'siglip2' are supported."
            )


def _tokenizer_file(folder: Path, config: dict[str, Any]) -> str:
    """Return the name of the tokenizer's file.

    It is the only difference between the configurations of SigLIP and fixed-resolution SigLIP 2.
    The class in tokenizer_config.json decides, then the class in config.json, then which file
    exists.
    """
    file = folder / "tokenizer_config.json"
    named = read_json(file, "").get("tokenizer_class") if file.is_file() else None
    named = named or config.get("tokenizer_class")
    if named is None or str(named).removesuffix("Fast") in ANY_TOKENIZER:
        if (folder / "tokenizer.json").is_file() and not (folder / "spiece.model").is_file():
            return "tokenizer.json"
        return "spiece.model"

    needed = TOKENIZERS.get(str(named).removesuffix("Fast"))
    if needed is None:
        raise ConfigError(
            f"{file} has tokenizer_class {str(named)[:100]!r}, but only {', '.join(TOKENIZERS)} "
            "are supported; another tokenizer would give different tokens."
        )
    return needed


def _check_tokenizer_files(folder: Path, family: Family) -> None:
    needed = "spiece.model" if family is Family.SIGLIP else "tokenizer.json"
    if not (folder / needed).is_file():
        raise ConfigError(
            f"{folder / needed} is missing; without it, the {family} tokenizer knows no words."
        )


def _section(folder: Path, config: dict[str, Any], key: str) -> dict[str, Any]:
    section = config.get(key)
    if not isinstance(section, dict):
        raise ConfigError(
            f"{folder / 'config.json'} has no {key}; a checkpoint must have both towers."
        )
    return section


def _count(file: Path, section: dict[str, Any], key: str, default: int) -> int:
    """Return a size from a section, and refuse values that no real checkpoint has."""
    value = section.get(key, default)
    if type(value) is not int or not 1 <= value <= MAX_COUNT:
        raise ConfigError(f"{file}: {key} must be a whole number from 1 to {MAX_COUNT:,}.")
    return value


def _embedding_width(file: Path, vision: dict[str, Any], text: dict[str, Any]) -> int:
    """Return D, which must be the same for both towers."""
    width = _count(file, vision, "hidden_size", 768)
    text_width = _count(file, text, "hidden_size", 768)
    if text.get("projection_size") is not None:
        text_width = _count(file, text, "projection_size", text_width)
    if width != text_width:
        raise ConfigError(
            f"{file}: the width of image embeddings is {width} (hidden_size of vision_config), but "
            f"that of text embeddings is {text_width} (projection_size or hidden_size of "
            "text_config); they must be equal."
        )
    return width
