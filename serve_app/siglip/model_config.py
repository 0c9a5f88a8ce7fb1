"""Refuses checkpoints whose `config.json` requires an unsupported feature.

Such a checkpoint would load, but a part of the model would be missing or replaced by the standard
one, so its embeddings would be wrong. The check runs before any weight is read.

Not here: sizes and names of the towers (`checkpoints.py`), tensors that do not match the
configuration (`towers/tower.py`).
"""

from pathlib import Path
from typing import Any

from serve_app.errors import ConfigError
from serve_app.siglip.json_files import read_json

CONFIG_FILE = "config.json"
ADAPTER_FILE = "adapter_config.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CHANNELS = 3
UNSUPPORTED = {
    "quantization_config": (
        "the weights are stored quantized; use the checkpoint with floating-point weights, and set "
        "quantization in the service's configuration"
    ),
    "transformers_weights": (
        "the weights are in a file with another name; rename it to model.safetensors and remove "
        "this key"
    ),
    "fusion_config": "it replaces modules of the model; remove this key to use the standard ones",
    "auto_map": (
        "it names code from the checkpoint, which is never run; remove this key to use the "
        "standard model"
    ),
}
"""Keys of `config.json` and of its two towers that change the model, and why each is refused."""


def check_model_config(folder: Path, config: dict[str, Any]) -> None:
    """Raise `ConfigError` for a checkpoint that would be loaded as a different model.

    Args:
        folder: The checkpoint.
        config: The content of its `config.json`.
    """
    file = folder / CONFIG_FILE
    if (folder / ADAPTER_FILE).is_file():
        raise ConfigError(
            f"{folder} has an {ADAPTER_FILE}: adapters such as LoRA are not supported. Merge it "
            "into the weights (merge_and_unload in the peft library), save the model, and use that "
            "folder."
        )

    towers = {kind: _section(config, kind) for kind in ("text_config", "vision_config")}
    for section in (config, *towers.values()):
        for key, reason in UNSUPPORTED.items():
            if section.get(key):
                raise ConfigError(f"{file}: {key} is not supported: {reason}.")

    for kind, tower in towers.items():
        expected = f"{config.get('model_type')}_{kind.removesuffix('_config')}_model"
        named = tower.get("model_type")
        if named is not None and named != expected:
            shown = str(named)[:100]
            raise ConfigError(
                f"{file}: model_type of {kind} is {shown}; only {expected} is supported."
            )

    _check_vision(file, towers["vision_config"])
    _check_tokenizer_code(folder / TOKENIZER_CONFIG_FILE)


def _check_vision(file: Path, vision: dict[str, Any]) -> None:
    if vision.get("vision_use_head", True) is not True:
        raise ConfigError(
            f"{file}: vision_use_head must be true; a model without the pooling head has no image "
            "embeddings."
        )
    if vision.get("num_channels", CHANNELS) != CHANNELS:
        raise ConfigError(f"{file}: num_channels must be {CHANNELS}; images are prepared as RGB.")


def _check_tokenizer_code(file: Path) -> None:
    if file.is_file() and read_json(file, "").get("auto_map"):
        raise ConfigError(f"{file}: auto_map is not supported: {UNSUPPORTED['auto_map']}.")


def _section(config: dict[str, Any], kind: str) -> dict[str, Any]:
    section = config.get(kind)
    return section if isinstance(section, dict) else {}
