"""A checkpoint's fingerprint follows from what its files hold."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.errors import ConfigError
from serve_app.siglip.checkpoints import read_checkpoint
from serve_app.siglip.identity import checkpoint_fingerprint, encoder_fingerprint
from serve_app.siglip.safetensors_files import read_header


@pytest.fixture
def folder(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny("siglip2"), tmp_path / "c")


def test_a_moved_folder_keeps_it_and_a_name_or_revision_says_nothing(folder: Path, tmp_path: Path) -> None:
    """Embeddings of the same weights are comparable wherever they lie."""
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert checkpoint_fingerprint(read_checkpoint(folder)) == checkpoint_fingerprint(read_checkpoint(moved, "other/name", "main"))


def test_every_tensor_counts(folder: Path) -> None:
    """One byte in the middle of any tensor of the file, the two scalars of the head among them."""
    path = folder / "model.safetensors"
    data, header = path.read_bytes(), read_header(path)
    before = checkpoint_fingerprint(read_checkpoint(folder))
    for begin, end in (offsets for _, _, offsets in header.tensors.values()):
        changed = bytearray(data)
        changed[header.start + (begin + end) // 2] ^= 1
        path.write_bytes(changed)
        assert checkpoint_fingerprint(read_checkpoint(folder)) != before


def test_a_missing_shard_is_told(folder: Path) -> None:
    """Named by an index and not there."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"logit_bias": "model-00001-of-00002.safetensors", "logit_scale": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="model-00002-of-00002"):
        checkpoint_fingerprint(read_checkpoint(folder))


@pytest.mark.parametrize("change", ["weights", "tokenizer", "config"])
def test_what_changes_embeddings_changes_it(folder: Path, change: str) -> None:
    """One byte of the weights, one word of the tokenizer, one value of the configuration."""
    before = checkpoint_fingerprint(read_checkpoint(folder))
    match change:
        case "weights":
            path = folder / "model.safetensors"
            data = bytearray(path.read_bytes())
            data[-100] ^= 1
            path.write_bytes(data)
        case "tokenizer":
            (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace('"cat"', '"cot"') + " ")
        case _:
            config = json.loads((folder / "config.json").read_text())
            config["text_config"]["layer_norm_eps"] = 1e-5
            (folder / "config.json").write_text(json.dumps(config))
    assert checkpoint_fingerprint(read_checkpoint(folder)) != before


def test_dtype_and_quantisation_are_part_of_what_text_embeddings_are(folder: Path) -> None:
    """Rows of a quantised tower are not mixed with those of an exact one."""
    checkpoint = read_checkpoint(folder)
    kinds = {encoder_fingerprint(checkpoint, dtype, bits) for dtype in ("float32", "bfloat16") for bits in ("none", "4bit")}
    assert len(kinds) == 4
