"""The towers: loaded alone, unit vectors, and what must never be quantised or silently changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, SiglipConfig, SiglipModel

from serve_app.errors import ConfigError
from serve_app.images.limits import ImageLimits
from serve_app.siglip.checkpoints import read_checkpoint
from serve_app.siglip.inputs import ImageBatch, collate, concatenate
from serve_app.siglip.precision import Precision
from serve_app.siglip.prepare import ImagePreparer
from serve_app.siglip.scoring import pair_logits
from serve_app.siglip.weights import read_similarity_head
from serve_app.towers import loading
from serve_app.towers.runtime import check_runs_here
from serve_app.towers.tower import ImageTower, TextTower
from tests.conftest import encoded, random_picture
from tests.tiny_checkpoints import LABELS


def batch_of(folder: Path, *sizes: tuple[int, int], max_num_patches: int = 64) -> ImageBatch:
    preparer = ImagePreparer(read_checkpoint(folder), ImageLimits(), max_num_patches)
    return collate(
        [preparer.prepare(encoded(random_picture(*size, seed=i))) for i, size in enumerate(sizes)]
    )


SIZES = ((120, 200), (300, 90), (64, 64))


def test_embeddings_are_unit_float32(checkpoint_folder: Path) -> None:
    """Whatever the dtype, (B, D) float32 rows of length 1 come out."""
    for dtype in ("float32", "bfloat16"):
        embeds = ImageTower(read_checkpoint(checkpoint_folder), Precision(dtype=dtype)).encode(
            batch_of(checkpoint_folder, *SIZES)
        )
        assert embeds.dtype == np.float32
        assert embeds.shape == (3, 64)
        np.testing.assert_allclose(np.linalg.norm(embeds, axis=1), 1, atol=1e-5)


def test_each_tower_is_loaded_alone(checkpoint_folder: Path) -> None:
    """The image tower holds no text weights and the text tower no image weights."""
    checkpoint = read_checkpoint(checkpoint_folder)
    image = {name for name, _ in ImageTower(checkpoint)._model.named_parameters()}
    text = {name for name, _ in TextTower(checkpoint)._model.named_parameters()}
    assert not any("token_embedding" in name for name in image)
    assert not any("patch_embedding" in name for name in text)
    assert image
    assert text


def test_an_image_does_not_depend_on_its_batch(checkpoint_folder: Path) -> None:
    """Alone or padded beside longer ones, the same embedding: padding is masked."""
    tower = ImageTower(
        read_checkpoint(checkpoint_folder), Precision(dtype="float32")
    )  # bfloat16 rounds by the batch
    together = tower.encode(batch_of(checkpoint_folder, *SIZES))
    apart = np.concatenate(
        [tower.encode(collate([image])) for image in batch_of(checkpoint_folder, *SIZES).split()]
    )
    np.testing.assert_allclose(together, apart, atol=2e-5)


def test_mask_matters_for_naflex(tiny: Callable[[str], Path]) -> None:
    """If padding were not masked, a padded image would come out as another one."""
    folder = tiny("siglip2-naflex")
    batch = batch_of(folder, (64, 64), (300, 90))
    assert batch.pixel_attention_mask is not None
    unmasked = ImageBatch(
        batch.pixel_values, np.ones_like(batch.pixel_attention_mask), batch.spatial_shapes
    )
    tower = ImageTower(read_checkpoint(folder))
    shortest = int(batch.pixel_attention_mask.sum(axis=1).argmin())
    assert (tower.encode(batch)[shortest] * tower.encode(unmasked)[shortest]).sum() < 0.99


def test_joined_micro_batches_are_one_batch(checkpoint_folder: Path) -> None:
    """Micro-batches of several senders join into what a single sender would have sent."""
    whole = batch_of(checkpoint_folder, *SIZES)
    parts = [collate(whole.split()[:1]), collate(whole.split()[1:])]
    np.testing.assert_array_equal(concatenate(parts).pixel_values, whole.pixel_values)


def test_text_tower_gets_no_attention_mask(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 3: the forward pass sees `input_ids` and nothing else."""
    tower = TextTower(read_checkpoint(checkpoint_folder))
    seen = []
    forward = tower._model.forward
    monkeypatch.setattr(
        tower._model, "forward", lambda **inputs: seen.append(sorted(inputs)) or forward(**inputs)
    )
    tower.encode(["cat"])
    assert seen == [["input_ids"]]


def test_scores_stay_close_when_towers_run_in_bfloat16(checkpoint_folder: Path) -> None:
    """Trap 9: with a float32 head, bfloat16 towers move logits far less than 0.43."""
    checkpoint = read_checkpoint(checkpoint_folder)
    head = read_similarity_head(checkpoint_folder)
    batch = batch_of(checkpoint_folder, *SIZES)
    exact, rounded = (
        pair_logits(
            ImageTower(checkpoint, Precision(dtype=dtype)).encode(batch),
            TextTower(checkpoint).encode(LABELS),
            head.logit_scale,
            head.logit_bias,
        )
        for dtype in ("float32", "bfloat16")
    )
    model = AutoModel.from_pretrained(checkpoint_folder, dtype=torch.bfloat16)
    assert model.logit_scale.exp().item() != pytest.approx(
        head.logit_scale, abs=0.05
    )  # what a bfloat16 load would have used
    assert np.abs(exact - rounded).max() < 1.0


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantised_tower_is_close_and_keeps_its_patch_embedding(
    checkpoint_folder: Path, quantization: str
) -> None:
    """Trap 6: only the encoder's linear layers are quantized, and embeddings stay close."""
    checkpoint = read_checkpoint(checkpoint_folder)
    batch = batch_of(checkpoint_folder, *SIZES)
    dtype = "float16" if quantization == "8bit" else "bfloat16"
    tower = ImageTower(checkpoint, Precision(dtype=dtype, quantization=quantization))
    types = {name: parameter.dtype for name, parameter in tower._model.named_parameters()}
    assert all(
        d.is_floating_point
        for name, d in types.items()
        if "patch_embedding" in name or "head" in name
    )
    assert any(not d.is_floating_point for d in types.values())
    cosine = (tower.encode(batch) * ImageTower(checkpoint).encode(batch)).sum(axis=1)
    assert cosine.min() > 0.9


def test_quantised_patch_embedding_is_refused(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 6: with the skip list gone, the load stops instead of serving noise."""
    monkeypatch.setattr(loading, "UNQUANTIZED", ("head",))
    with pytest.raises(ConfigError, match="patch embedding"):
        ImageTower(
            read_checkpoint(tiny("siglip2-naflex")),
            Precision(dtype="bfloat16", quantization="4bit"),
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "precision", [Precision(device="cuda"), Precision(attention="flash_attention_2")]
)
def test_what_the_machine_cannot_do_is_refused(
    checkpoint_folder: Path, precision: Precision
) -> None:
    """A precision is applied or refused with a reason, and never changed."""
    with pytest.raises(ConfigError, match="auto"):
        check_runs_here(precision)
    for tower in (ImageTower, TextTower):
        with pytest.raises(ConfigError, match="auto"):
            tower(read_checkpoint(checkpoint_folder), precision)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_model_has_the_requested_attention_kernel(
    checkpoint_folder: Path, attention: str
) -> None:
    """The loaded model has the requested kernel."""
    tower = ImageTower(read_checkpoint(checkpoint_folder), Precision(attention=attention))
    assert tower._model.config._attn_implementation == attention


def test_missing_tensors_are_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A weight that is not in the file would be random; the load stops and names it."""
    folder = shutil.copytree(tiny("siglip"), tmp_path / "c")
    tensors = load_file(folder / "model.safetensors")
    del tensors["vision_model.post_layernorm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="post_layernorm"):
        ImageTower(read_checkpoint(folder))


def test_wrong_shapes_are_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A config that does not fit its weights stops the load."""
    folder = shutil.copytree(tiny("siglip"), tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["intermediate_size"] = 256
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="weights"):
        ImageTower(read_checkpoint(folder))


@pytest.mark.parametrize("section", ["vision_config", "text_config"])
def test_weights_without_a_place_are_refused(
    tiny: Callable[[str], Path], tmp_path: Path, family: str, section: str
) -> None:
    """Fewer layers in config.json than in the weights are refused; transformers ignores them."""
    folder = shutil.copytree(tiny(family), tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    config[section]["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    tower = ImageTower if section == "vision_config" else TextTower
    with pytest.raises(
        ConfigError,
        match=r"16 tensors that config\.json has no place for, first .*encoder\.layers\.1\.",
    ):
        tower(read_checkpoint(folder))
    other = TextTower if section == "vision_config" else ImageTower
    assert other(read_checkpoint(folder))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 3}, "lacks 16 tensors"),
        ({"hidden_size": 128}, "width of image embeddings is 128"),
        ({"intermediate_size": 64}, "other shapes than config.json describes"),
        ({"num_attention_heads": 5}, "divisible by num_heads"),
        ({"hidden_act": "no_such_activation"}, "no_such_activation"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps"),
        ({"image_size": 64}, "size is 32×32"),
        ({"patch_size": 16}, "other shapes than config.json describes"),
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_is_refused(
    tiny: Callable[[str], Path], tmp_path: Path, change: dict, said: str
) -> None:
    """More layers, other widths and other sizes each have a message of their own."""
    folder = shutil.copytree(tiny("siglip2"), tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=said):
        ImageTower(read_checkpoint(folder))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda tensors: {
                "encoder.layers.0.mlp.fc1.weight": tensors[
                    "vision_model.encoder.layers.0.mlp.fc1.weight"
                ]
                * 2
            },
            "also without",
        ),
        (
            lambda tensors: {
                "vision_model.encoder.layers.0.mlp.fc1.lora_A.weight": torch.ones(4, 64)
            },
            "has no place for",
        ),
        (
            lambda tensors: {
                "vision_model.encoder.layers.0.mlp.fc1.bias": torch.ones(128, dtype=torch.int32)
            },
            "as I32",
        ),
    ],
)
def test_tensors_that_could_be_meant_otherwise_are_refused(
    tiny: Callable[[str], Path], tmp_path: Path, change: Callable, said: str
) -> None:
    """The same name with and without the tower before it, an adapter's, and integers."""
    folder = shutil.copytree(tiny("siglip2"), tmp_path / "c")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | change(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=said):
        ImageTower(read_checkpoint(folder))


def test_positions_of_old_checkpoints_and_a_classifier_are_let_through(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """Tensors that no tower has a part of: transformers computes positions itself."""
    folder = shutil.copytree(tiny("siglip2"), tmp_path / "c")
    tensors = load_file(folder / "model.safetensors")
    more = {
        "vision_model.embeddings.position_ids": torch.arange(16)[None],
        "classifier.weight": torch.ones(3, 64),
    }
    save_file(tensors | more, folder / "model.safetensors", metadata={"format": "pt"})
    batch = batch_of(folder, *SIZES)
    np.testing.assert_array_equal(
        ImageTower(read_checkpoint(folder)).encode(batch),
        ImageTower(read_checkpoint(tiny("siglip2"))).encode(batch),
    )


def test_settings_of_outputs_do_not_matter(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """`return_dict: false` makes transformers' models return tuples."""
    folder = shutil.copytree(tiny("siglip2"), tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    for section in ("vision_config", "text_config"):
        config[section] |= {"return_dict": False, "output_hidden_states": True}
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = read_checkpoint(folder)
    assert ImageTower(checkpoint).encode(batch_of(folder, *SIZES)).shape == (3, 64)
    assert TextTower(checkpoint).encode(["cat"]).shape == (1, 64)


@pytest.mark.parametrize(("hidden", "heads", "mlp"), [(64, 4, 134), (66, 2, 130), (63, 3, 127)])
@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_odd_widths_can_be_quantised(
    tmp_path: Path,
    tiny: Callable[[str], Path],
    hidden: int,
    heads: int,
    mlp: int,
    quantization: str,
) -> None:
    """The 4,304 hidden units of so400m do not fit bitsandbytes' fast 4-bit layout on CPUs."""
    folder = shutil.copytree(tiny("siglip2"), tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    for section in ("vision_config", "text_config"):
        config[section] |= {
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "intermediate_size": mlp,
            "projection_size": hidden,
        }
    model = SiglipModel(
        SiglipConfig(text_config=config["text_config"], vision_config=config["vision_config"])
    )
    model.save_pretrained(folder)
    checkpoint = read_checkpoint(folder)
    batch = batch_of(folder, *SIZES)
    exact = ImageTower(checkpoint, Precision(dtype="float32")).encode(batch)
    quantised = ImageTower(
        checkpoint, Precision(dtype="float32", quantization=quantization)
    ).encode(batch)
    assert (exact * quantised).sum(axis=1).min() > 0.9
    assert TextTower(checkpoint, Precision(dtype="float32", quantization=quantization)).encode(
        ["cat"]
    ).shape == (1, hidden)
