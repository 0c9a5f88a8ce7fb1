"""A tower that is wrong is not served."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from serve_app.config.plugin import DEMO_CHECKPOINT
from serve_app.errors import ConfigError
from serve_app.siglip.checkpoints import read_checkpoint
from serve_app.towers.self_check import REFERENCE_FILE, check_image_tower, check_text_tower
from serve_app.towers.tower import ImageTower, TextTower


def test_sound_towers_pass(checkpoint_folder: Path) -> None:
    """Every family passes its invariants."""
    checkpoint = read_checkpoint(checkpoint_folder)
    check_image_tower(ImageTower(checkpoint))
    check_text_tower(TextTower(checkpoint))


def test_demo_towers_give_their_reference_vectors() -> None:
    """The demo checkpoint carries vectors, and its towers give them."""
    assert (DEMO_CHECKPOINT / REFERENCE_FILE).is_file()
    checkpoint = read_checkpoint(DEMO_CHECKPOINT)
    check_image_tower(ImageTower(checkpoint))
    check_text_tower(TextTower(checkpoint))


def test_other_vectors_stop_the_demo(tmp_path: Path) -> None:
    """Weights that give something else than the stored vectors are refused."""
    folder = shutil.copytree(DEMO_CHECKPOINT, tmp_path / "c")
    tensors = load_file(folder / REFERENCE_FILE)
    tensors["image_embeds"] = np.roll(tensors["image_embeds"], 1, axis=0)
    tensors["text_embeds"] = np.roll(tensors["text_embeds"], 1, axis=0)
    save_file(tensors, folder / REFERENCE_FILE)
    checkpoint = read_checkpoint(folder)
    with pytest.raises(ConfigError, match="image tower"):
        check_image_tower(ImageTower(checkpoint))
    with pytest.raises(ConfigError, match="text tower"):
        check_text_tower(TextTower(checkpoint))


def test_nan_weights_are_refused(tiny: Callable[[str], Path]) -> None:
    """Embeddings that are not finite are found at load."""
    tower = ImageTower(read_checkpoint(tiny("siglip")))
    with torch.no_grad():
        name = "post_layernorm.weight"
        if not hasattr(tower._model, "post_layernorm"):
            name = f"vision_model.{name}"
        tower._model.get_parameter(name).fill_(torch.nan)
    with pytest.raises(ConfigError, match="NaN"):
        check_image_tower(tower)


def test_constant_tower_is_refused(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tower that says the same of everything is found at load."""
    tower = TextTower(read_checkpoint(tiny("siglip2")))
    monkeypatch.setattr(
        tower, "encode_ids", lambda ids: np.tile(np.eye(1, 64, dtype=np.float32), (len(ids), 1))
    )
    with pytest.raises(ConfigError, match="same embedding"):
        check_text_tower(tower)


def test_padding_insensitive_text_tower_is_refused(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traps 3 and 4: a tower that ignores padding, as with an attention mask, is found at load."""
    tower = TextTower(read_checkpoint(tiny("siglip2")))
    encode_ids = tower.encode_ids

    def ignoring_padding(ids: np.ndarray) -> np.ndarray:
        return np.concatenate([encode_ids(row[None, : int((row != 0).sum())]) for row in ids])

    monkeypatch.setattr(tower, "encode_ids", ignoring_padding)
    with pytest.raises(ConfigError, match="padding"):
        check_text_tower(tower)
