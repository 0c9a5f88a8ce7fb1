"""Checkpoints whose config.json requires an unsupported feature are refused, with what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import ConfigError
from serve_app.siglip.checkpoints import Family, read_checkpoint


def changed(source: Path, folder: Path, change: dict[str, Any], file: str = "config.json") -> Path:
    """Copy a checkpoint and change keys of a JSON file, also in its nested objects."""
    shutil.copytree(source, folder)
    content = json.loads((folder / file).read_text())
    for key, value in change.items():
        old = content.get(key)
        content[key] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
    (folder / file).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "stored quantized",
        ),
        ({"vision_config": {"quantization_config": {"quant_method": "gptq"}}}, "stored quantized"),
        ({"transformers_weights": "other.safetensors"}, "rename it to model.safetensors"),
        (
            {"text_config": {"transformers_weights": "other.safetensors"}},
            "rename it to model.safetensors",
        ),
        ({"vision_config": {"fusion_config": {"a": 1}}}, "fusion_config is not supported"),
        ({"auto_map": {"AutoModel": "modeling.Model"}}, "names code from the checkpoint"),
        ({"vision_config": {"vision_use_head": False}}, "vision_use_head must be true"),
        ({"vision_config": {"num_channels": 1}}, "num_channels must be 3"),
        (
            {"vision_config": {"model_type": "clip_vision_model"}},
            "model_type of vision_config is clip_vision_model",
        ),
        ({"text_config": {"model_type": "gemma"}}, "model_type of text_config is gemma"),
        (
            {"text_config": {"projection_size": 32}},
            "image embeddings is 64 .* of text embeddings is 32",
        ),
        ({"vision_config": {"image_size": [32, 32]}}, "image_size must be a whole number"),
    ],
    ids=str,
)
def test_what_would_be_another_model_is_refused(
    tiny: Callable[[str], Path], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    """If the key were ignored, the model would give other embeddings than its author's."""
    folder = changed(tiny("siglip2"), tmp_path / "c", change)
    with pytest.raises(ConfigError, match=said) as refused:
        read_checkpoint(folder)
    assert "config.json" in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float16"},
        {"torch_dtype": "bfloat16"},
        {"auto_map": {}},
        {"quantization_config": None},
    ],
    ids=str,
)
def test_keys_that_change_nothing_are_let_through(
    tiny: Callable[[str], Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    """The dtype is that of the service's configuration; null and empty blocks ask for nothing."""
    assert read_checkpoint(changed(tiny("siglip2"), tmp_path / "c", change)).embedding_width == 64


def test_an_adapter_is_not_left_out_silently(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A folder with LoRA weights is refused, because it would be loaded without them."""
    folder = shutil.copytree(tiny("siglip2"), tmp_path / "c")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(folder)})
    )
    with pytest.raises(ConfigError, match="merge_and_unload"):
        read_checkpoint(folder)


def test_code_for_the_tokenizer_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """It is never run, and without it the tokens would be others."""
    change = {"auto_map": {"AutoTokenizer": ["tokenization.Tokenizer", None]}}
    folder = changed(tiny("siglip2"), tmp_path / "c", change, "tokenizer_config.json")
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json: auto_map"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("family", "named", "expected"),
    [
        ("siglip", "SiglipTokenizer", Family.SIGLIP),
        ("siglip", "SiglipTokenizerFast", Family.SIGLIP),
        ("siglip", None, Family.SIGLIP),
        ("siglip2", "GemmaTokenizer", Family.SIGLIP2),
        ("siglip2", "GemmaTokenizerFast", Family.SIGLIP2),
        ("siglip2", "Siglip2Tokenizer", Family.SIGLIP2),
        ("siglip2", None, Family.SIGLIP2),
        ("siglip2", "PreTrainedTokenizerFast", Family.SIGLIP2),
        ("siglip2", "TokenizersBackend", Family.SIGLIP2),
        ("siglip2-naflex", "AnyTokenizer", Family.NAFLEX),
    ],
)
def test_the_tokenizer_that_is_named_decides(
    tiny: Callable[[str], Path], tmp_path: Path, family: str, named: str | None, expected: Family
) -> None:
    """As `AutoTokenizer` does: the files of another tokenizer in the same folder mean nothing."""
    folder = changed(
        tiny(family), tmp_path / "c", {"tokenizer_class": named}, "tokenizer_config.json"
    )
    if named not in (None, "PreTrainedTokenizerFast", "TokenizersBackend"):
        for other, file in (("siglip", "spiece.model"), ("siglip2", "tokenizer.json")):
            if not (folder / file).exists():
                shutil.copy(tiny(other) / file, folder / file)
    assert read_checkpoint(folder).family is expected


def test_another_tokenizer_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """CLIP's tokenizer on a SigLIP model: every text would become other tokens."""
    folder = changed(
        tiny("siglip"),
        tmp_path / "c",
        {"tokenizer_class": "CLIPTokenizer"},
        "tokenizer_config.json",
    )
    with pytest.raises(ConfigError, match=r"CLIPTokenizer.*SiglipTokenizer"):
        read_checkpoint(folder)
