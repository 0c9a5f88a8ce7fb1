"""The table of released checkpoints against the models themselves, built on torch's meta device."""

import pytest
import torch
from transformers import (
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

from serve_app.config.plugin import MODEL_VARIANTS
from serve_app.siglip.architecture import Architecture, read_architecture
from serve_app.siglip.checkpoints import Family
from serve_app.siglip.released import RELEASED, Released, find_released


def hub_config(shape: Architecture) -> SiglipConfig | Siglip2Config:
    """Return the transformers configuration of a shape."""

    def tower(encoder: object) -> dict[str, int]:
        keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        return {key: getattr(encoder, key) for key in keys}

    vision = tower(shape.vision) | {"patch_size": shape.patch_size_px}
    if shape.image_size_px is None:
        vision["num_patches"] = shape.num_patches
    else:
        vision["image_size"] = shape.image_size_px
    text = tower(shape.text) | {
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.context_length,
        "projection_size": shape.embedding_width,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    kind = Siglip2Config if shape.family is Family.NAFLEX else SiglipConfig
    return kind(vision_config=vision, text_config=text)


def meta_model(shape: Architecture) -> SiglipModel | Siglip2Model:
    """Return the model of a shape without memory for its weights."""
    with torch.device("meta"):
        return (Siglip2Model if shape.family is Family.NAFLEX else SiglipModel)(hub_config(shape))


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("row", RELEASED, ids=lambda row: row.hub_id)
def test_parameters_are_those_of_the_model(row: Released) -> None:
    """Each tower's and the whole model's parameters, exactly."""
    model = meta_model(row.architecture)
    assert row.architecture.vision_parameters.total == count(model.vision_model)
    assert row.architecture.text_parameters.total == count(model.text_model)
    assert row.architecture.total_parameters == count(model)


@pytest.mark.parametrize("row", RELEASED, ids=lambda row: row.hub_id)
def test_a_configuration_gives_the_same_shape(row: Released) -> None:
    """The table matches `config.json`, with and without the keys that have default values."""
    full = hub_config(row.architecture)
    for written in (full.to_dict(), full.to_diff_dict()):
        assert read_architecture(written, row.family) == row.architecture


@pytest.mark.parametrize(
    ("hub_id", "total", "image_gflop", "text_gflop"),
    [
        ("google/siglip-base-patch16-224", 203_155_970, 35.4, 11.0),
        ("google/siglip-so400m-patch14-384", 877_960_498, 670, 53.1),
        ("google/siglip2-base-patch16-224", 375_187_970, 35.4, 11.0),
        ("google/siglip2-so400m-patch14-384", 1_136_008_498, 670, 53.1),
        ("google/siglip2-large-patch16-512", 882_313_218, 728, 39.1),
        ("google/siglip2-giant-opt-patch16-384", 1_871_885_426, 1393, 53.1),
        ("google/siglip2-base-patch16-naflex", 375_234_050, 46.8, 11.0),
    ],
)
def test_published_counts(hub_id: str, total: int, image_gflop: float, text_gflop: float) -> None:
    """Parameters as keras-hub publishes them, FLOPs as counted by hand from the matrix products."""
    row = find_released(hub_id)
    assert row is not None
    assert row.architecture.total_parameters == total
    assert row.architecture.image_flops() / 1e9 == pytest.approx(image_gflop, rel=2e-3)
    assert row.architecture.text_flops() / 1e9 == pytest.approx(text_gflop, rel=5e-3)


def test_every_short_name_is_released() -> None:
    """The plugin's variants are rows of the table."""
    assert all(find_released(hub_id) for hub_id in MODEL_VARIANTS.values())
    assert find_released("google/vit-base") is None
    assert len({row.hub_id for row in RELEASED}) == len(RELEASED) == 27
