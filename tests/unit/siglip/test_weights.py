"""The similarity head's scalars come from the file, exactly, whatever dtype they or the towers have."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from serve_app.errors import ConfigError
from serve_app.siglip.weights import read_similarity_head
from tests.tiny_checkpoints import LOGIT_BIAS, LOGIT_SCALE


def test_head_is_read_in_float32(tiny: Callable[[str], Path], family: str) -> None:
    """Trap 9: exp(4.77) is 117.92, where a bfloat16 load would give 119.1."""
    head = read_similarity_head(tiny(family))
    assert head.logit_scale == pytest.approx(math.exp(LOGIT_SCALE), rel=1e-6)
    assert head.logit_bias == pytest.approx(LOGIT_BIAS, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_float_dtype_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    """A checkpoint saved in bfloat16 can be read without torch: its value is what torch reads."""
    scale, bias = torch.tensor([4.5], dtype=dtype), torch.tensor([-12.5], dtype=dtype)
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
