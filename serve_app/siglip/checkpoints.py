"""What a checkpoint folder says of itself, read from its JSON files and checked before any weight is loaded.

Everything here fails loudly where transformers would go on with a wrong answer: a missing `tokenizer.json` becomes a
five-token vocabulary there, a missing preprocessor configuration a default one.

Not here: finding or downloading the folder (`hub.py`), loading the towers (`encoder.py`).
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from serve_app import bounded_files
from serve_app.bounded_files import FileMissing
from serve_app.errors import ConfigError

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
DEFAULT_CONTEXT_LENGTH = 64
"""Tokens, where `config.json` leaves it to the default of transformers' `SiglipTextConfig`."""
MAX_COUNT = 10_000_000
"""Of a size in `config.json`. The largest, the vocabulary of SigLIP 2, is 256,000."""


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
        image_mean: Per channel, in units of 1.
        image_std: Per channel, in units of 1.
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
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    context_length: int
    vocab_size: int
    embedding_width: int

    @property
    def strips_punctuation(self) -> bool:
        """Whether the towers were trained on text without punctuation."""
        return self.family is Family.SIGLIP


def read_checkpoint(folder: Path, name: str | None = None, revision: str | None = None) -> Checkpoint:
    """Read and check the JSON files of a checkpoint folder.

    Raises:
        ConfigError: A file is missing or does not describe a SigLIP checkpoint; names the file.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; give a checkpoint folder or a hub id such as google/siglip2-base-patch16-224.")
    config = read_json(folder / "config.json", "it says which model the weights belong to")
    if not (folder / WEIGHTS).is_file() and not (folder / WEIGHTS_INDEX).is_file():
        raise ConfigError(f"{folder} has neither {WEIGHTS} nor {WEIGHTS_INDEX}; only safetensors weights are loaded.")
    family = _family(folder, config)
    _check_tokenizer_files(folder, family)
    vision, text = _section(folder, config, "vision_config"), _section(folder, config, "text_config")
    processor = _read_processor(folder)
    config_file = folder / "config.json"
    return Checkpoint(
        folder=folder,
        name=name or folder.name,
        revision=revision,
        family=family,
        image_size_px=None if family is Family.NAFLEX else _count(config_file, vision, "image_size", 224),
        patch_size_px=_count(config_file, vision, "patch_size", 16),
        resample=int(processor.get("resample", 3 if family is Family.SIGLIP else 2)),
        image_mean=_triple(processor.get("image_mean", [0.5] * 3)),
        image_std=_triple(processor.get("image_std", [0.5] * 3)),
        context_length=_count(config_file, text, "max_position_embeddings", DEFAULT_CONTEXT_LENGTH),
        vocab_size=_count(config_file, text, "vocab_size", 32_000),
        embedding_width=_count(config_file, vision, "hidden_size", 768),
    )


def weight_files(folder: Path) -> dict[str, Path]:
    """Return which safetensors file holds each tensor listed in the index, or an empty table for a single file."""
    index = folder / WEIGHTS_INDEX
    if not index.is_file():
        return {}
    table = read_json(index, "it says which file holds which tensor").get("weight_map", {})
    if not isinstance(table, dict) or not all(_is_name(file) for file in table.values()):
        raise ConfigError(f"{index}: weight_map must give each tensor the name of a file in the same folder.")
    return {tensor: folder / file for tensor, file in table.items()}


def _is_name(file: Any) -> bool:
    """Whether a value names a file of the folder itself, and not one outside it."""
    return isinstance(file, str) and file not in ("", ".", "..") and "/" not in file and "\0" not in file


def _family(folder: Path, config: dict[str, Any]) -> Family:
    match config.get("model_type"):
        case "siglip2":
            return Family.NAFLEX
        case "siglip":
            return Family.SIGLIP if (folder / "spiece.model").is_file() or not _is_gemma(folder) else Family.SIGLIP2
        case other:
            raise ConfigError(f"{folder / 'config.json'} says model_type {other!r}; this service loads 'siglip' and 'siglip2'.")


def _is_gemma(folder: Path) -> bool:
    """Whether the tokenizer is SigLIP 2's; fixed-resolution SigLIP 2 has the same `model_type` as SigLIP."""
    if (folder / "tokenizer.json").is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and "Gemma" in str(read_json(path, "").get("tokenizer_class"))


def _check_tokenizer_files(folder: Path, family: Family) -> None:
    needed = "spiece.model" if family is Family.SIGLIP else "tokenizer.json"
    if not (folder / needed).is_file():
        raise ConfigError(f"{folder / needed} is missing; without it every word would be unknown to the {family} tokenizer.")


def _read_processor(folder: Path) -> dict[str, Any]:
    for file in ("preprocessor_config.json", "processor_config.json"):
        if (folder / file).is_file():
            content = read_json(folder / file, "")
            nested = content.get("image_processor", content)
            return nested if isinstance(nested, dict) else content
    raise ConfigError(f"{folder} has neither preprocessor_config.json nor processor_config.json; they say how images are resized.")


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


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def read_json(path: Path, why: str) -> dict[str, Any]:
    """Read a JSON object; `why` completes the sentence that a missing file is told in.

    Raises:
        ConfigError: The file is missing, too large, nested too deeply, or holds something else.
    """
    try:
        content = bounded_files.read_json(path)
    except FileMissing as error:
        raise ConfigError(f"{path} is missing; {why}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} does not hold a JSON object.")
    return content
