"""Reads and checks a checkpoint folder's JSON files before any weight is loaded.

Everything here fails loudly where transformers would go on with a wrong answer: a missing
`tokenizer.json` becomes a five-token vocabulary there, a missing preprocessor configuration a
default one.

Not here: finding or downloading the folder (`hub.py`), what images are turned into
(`image_settings.py`), parts of a model that are not supported (`model_config.py`), loading the
towers (`encoder.py`).
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from serve_app.errors import ConfigError
from serve_app.siglip.image_settings import Channels, read_image_settings
from serve_app.siglip.json_files import read_json
from serve_app.siglip.model_config import check_model_config

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
DEFAULT_CONTEXT_LENGTH = 64
"""Tokens, where `config.json` leaves it to the default of transformers' `SiglipTextConfig`."""
MAX_COUNT = 10_000_000
"""Of a size in `config.json`. The largest, the vocabulary of SigLIP 2, is 256,000."""
TOKENIZERS = {
    "SiglipTokenizer": "spiece.model",
    "Siglip2Tokenizer": "tokenizer.json",
    "GemmaTokenizer": "tokenizer.json",
}
"""Values of `tokenizer_class` that are loaded, with the file that each reads.

Fixed-resolution SigLIP 2 names Gemma's.
"""
ANY_TOKENIZER = ("PreTrainedTokenizer", "TokenizersBackend")
"""Names that transformers 4 and 5 write for a tokenizer that was loaded without its own class.

They say nothing of the file.
"""


class Family(StrEnum):
    """The three kinds of checkpoint, which differ in tokenizer, resampling and batch layout."""

    SIGLIP = "siglip"
    SIGLIP2 = "siglip2"
    NAFLEX = "siglip2-naflex"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder and the facts that preprocessing, tokenising and scoring need.

    Attributes:
        folder: Where the files lie.
        name: The hub id or the folder's name, as it is shown to clients.
        revision: The commit that was asked for, or None.
        family: Which kind of SigLIP.
        image_size_px: Side of the square input in pixels; None for NaFlex.
        patch_size_px: Patch side in pixels.
        resample: Pillow's filter number.
        pixel_scale: Per channel, factor of a pixel from 0 to 255 on its way into the vision tower.
        pixel_offset: Per channel, added after that.
        context_length: Tokens that every text is padded to.
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
        ConfigError: A file is missing or does not describe a SigLIP checkpoint; names the file.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is not a folder; give a checkpoint folder or a hub id such as google/siglip2-base-patch16-224."
        )
    config = read_json(folder / "config.json", "it says which model the weights belong to")
    if not (folder / WEIGHTS).is_file() and not (folder / WEIGHTS_INDEX).is_file():
        raise ConfigError(
            f"{folder} has neither {WEIGHTS} nor {WEIGHTS_INDEX}; only safetensors weights of these names are loaded. "
            "Rename a variant such as model.fp16.safetensors."
        )
    family = _family(folder, config)
    _check_tokenizer_files(folder, family)
    vision = _section(folder, config, "vision_config")
    text = _section(folder, config, "text_config")
    config_file = folder / "config.json"
    image_size_px = (
        None if family is Family.NAFLEX else _count(config_file, vision, "image_size", 224)
    )
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
    """Return which shard holds each tensor, or an empty table where one file holds them all.

    As in transformers, an index counts only where there is no `model.safetensors` beside it.
    """
    index = folder / WEIGHTS_INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return {}
    table = read_json(index, "it says which file holds which tensor").get("weight_map", {})
    if not isinstance(table, dict) or not all(_is_name(file) for file in table.values()):
        raise ConfigError(
            f"{index}: weight_map must give each tensor the name of a file in the same folder."
        )
    return {tensor: folder / file for tensor, file in table.items()}


def weight_paths(folder: Path) -> list[Path]:
    """Return the safetensors files that the weights are loaded from, in the order in which
    transformers loads them.
    """
    return sorted(set(weight_files(folder).values())) or [folder / WEIGHTS]


def _is_name(file: Any) -> bool:
    """Whether a value names a file of the folder itself, and not one outside it."""
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
            return (
                Family.SIGLIP
                if _tokenizer_file(folder, config) == "spiece.model"
                else Family.SIGLIP2
            )
        case other:
            shown = str(other)[:100]
            raise ConfigError(
                f"{folder / 'config.json'} says model_type {shown!r}; this service loads 'siglip' and 'siglip2'."
            )


def _tokenizer_file(folder: Path, config: dict[str, Any]) -> str:
    """Return the file of the tokenizer, which is all that tells fixed-resolution SigLIP 2 from
    SigLIP.

    The class named in tokenizer_config.json counts, then that in config.json, then which file is
    there.
    """
    file = folder / "tokenizer_config.json"
    named = read_json(file, "").get("tokenizer_class") if file.is_file() else None
    named = named or config.get("tokenizer_class")
    if named is None or str(named).removesuffix("Fast") in ANY_TOKENIZER:
        return (
            "tokenizer.json"
            if (folder / "tokenizer.json").is_file() and not (folder / "spiece.model").is_file()
            else "spiece.model"
        )
    needed = TOKENIZERS.get(str(named).removesuffix("Fast"))
    if needed is None:
        raise ConfigError(
            f"{file} says tokenizer_class {str(named)[:100]!r}, but this service knows {', '.join(TOKENIZERS)} only; "
            "with another tokenizer every text would become other tokens."
        )
    return needed


def _check_tokenizer_files(folder: Path, family: Family) -> None:
    needed = "spiece.model" if family is Family.SIGLIP else "tokenizer.json"
    if not (folder / needed).is_file():
        raise ConfigError(
            f"{folder / needed} is missing; without it every word would be unknown to the {family} tokenizer."
        )


def _section(folder: Path, config: dict[str, Any], key: str) -> dict[str, Any]:
    section = config.get(key)
    if not isinstance(section, dict):
        raise ConfigError(f"{folder / 'config.json'} has no {key}; a checkpoint needs both towers.")
    return section


def _count(file: Path, section: dict[str, Any], key: str, default: int) -> int:
    """Return a whole number that sizes something, within bounds that no checkpoint reaches."""
    value = section.get(key, default)
    if type(value) is not int or not 1 <= value <= MAX_COUNT:
        raise ConfigError(f"{file}: {key} must be a whole number from 1 to {MAX_COUNT:,}.")
    return value


def _embedding_width(file: Path, vision: dict[str, Any], text: dict[str, Any]) -> int:
    """Return D, which both towers must have in common."""
    width = _count(file, vision, "hidden_size", 768)
    text_hidden = _count(file, text, "hidden_size", 768)
    text_width = (
        text_hidden
        if text.get("projection_size") is None
        else _count(file, text, "projection_size", text_hidden)
    )
    if width != text_width:
        raise ConfigError(
            f"{file}: image embeddings have {width} numbers (hidden_size of the vision_config) and text embeddings {text_width} "
            "(projection_size, or hidden_size, of the text_config); they cannot be compared."
        )
    return width
