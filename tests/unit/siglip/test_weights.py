"""The similarity head's scalars are read exactly, whatever dtype they or the towers have."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from serve_app.errors import ConfigError
from serve_app.siglip.weights import read_similarity_head, tensor_dtypes
from tests.tiny_checkpoints import LOGIT_BIAS, LOGIT_SCALE


def test_head_is_read_in_float32(tiny: Callable[[str], Path], family: str) -> None:
    """Trap 9: exp(4.77) is 117.92, where a bfloat16 load would give 119.1."""
    head = read_similarity_head(tiny(family))
    assert head.logit_scale == pytest.approx(math.exp(LOGIT_SCALE), rel=1e-6)
    assert head.logit_bias == pytest.approx(LOGIT_BIAS, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_float_dtype_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    """A checkpoint saved in bfloat16 can be read without torch: its value is what torch reads."""
    scale = torch.tensor([4.5], dtype=dtype)
    bias = torch.tensor([-12.5], dtype=dtype)
    save_file({"logit_scale": scale, "logit_bias": bias}, tmp_path / "model.safetensors")
    head = read_similarity_head(tmp_path)
    assert head.logit_scale == pytest.approx(math.exp(4.5), rel=1e-6)
    assert head.logit_bias == -12.5


def test_sharded_weights_are_followed(tmp_path: Path) -> None:
    """The index says which file holds a scalar."""
    save_file({"logit_scale": torch.tensor([1.0])}, tmp_path / "a.safetensors")
    save_file({"logit_bias": torch.tensor([-2.0])}, tmp_path / "b.safetensors")
    index = {"weight_map": {"logit_scale": "a.safetensors", "logit_bias": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_similarity_head(tmp_path).logit_bias == -2.0


def test_missing_scalar_and_damaged_file_are_named(tmp_path: Path) -> None:
    """What is missing is named with the file; a damaged file is no traceback."""
    save_file({"logit_scale": torch.tensor([1.0])}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="logit_bias"):
        read_similarity_head(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        read_similarity_head(tmp_path)


def test_a_whole_file_counts_before_an_index(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Towers, scale and bias have one source: an index beside model.safetensors is ignored."""
    folder = shutil.copytree(tiny("siglip2"), tmp_path / "c")
    save_file(
        {"logit_scale": torch.tensor([1.0]), "logit_bias": torch.tensor([-2.0])},
        folder / "old.safetensors",
    )
    index = {"weight_map": {"logit_scale": "old.safetensors", "logit_bias": "old.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model = AutoModel.from_pretrained(folder)
    head = read_similarity_head(folder)
    assert head.logit_bias == pytest.approx(model.logit_bias.item())
    assert head.logit_scale == pytest.approx(model.logit_scale.exp().item())


def shards(
    folder: Path,
    first: dict[str, torch.Tensor],
    second: dict[str, torch.Tensor],
    weight_map: dict[str, str],
) -> None:
    """Write two shards and their index."""
    save_file(first, folder / "a.safetensors")
    save_file(second, folder / "b.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    """Transformers takes the last one, the index may name the first."""
    one = {"logit_bias": torch.tensor([1.0])}
    other = {"logit_bias": torch.tensor([2.0]), "logit_scale": torch.tensor([2.0])}
    shards(tmp_path, one, other, {"logit_bias": "a.safetensors", "logit_scale": "b.safetensors"})
    with pytest.raises(
        ConfigError, match=r"logit_bias is in a\.safetensors and in .*b\.safetensors"
    ):
        tensor_dtypes(tmp_path)


def test_an_index_of_other_shards_is_refused(tmp_path: Path) -> None:
    """It says that a tensor is where it is not."""
    one = {"logit_bias": torch.tensor([1.0])}
    other = {"logit_scale": torch.tensor([2.0])}
    shards(tmp_path, one, other, {"logit_bias": "b.safetensors", "logit_scale": "a.safetensors"})
    with pytest.raises(
        ConfigError, match=r"index\.json says that logit_bias is in b\.safetensors, but it is not"
    ):
        tensor_dtypes(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    """Named by the index and not downloaded."""
    shards(
        tmp_path,
        {"logit_bias": torch.tensor([1.0])},
        {"logit_scale": torch.tensor([2.0])},
        {"a": "a.safetensors", "c": "c.safetensors"},
    )
    with pytest.raises(ConfigError, match=r"c\.safetensors is missing"):
        tensor_dtypes(tmp_path)
