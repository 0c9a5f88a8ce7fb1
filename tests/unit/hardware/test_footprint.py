"""Predicted bytes against those of real models: on the meta device for every checkpoint, quantised
for real on small ones.
"""

from pathlib import Path

import pytest
import torch
from transformers import SiglipVisionModel

from serve_app.config.plugin import DEMO_CHECKPOINT
from serve_app.hardware.footprint import DTYPE_BYTES, image_footprint, text_footprint, weight_bytes
from serve_app.siglip.architecture import Encoder, Parameters, read_architecture
from serve_app.siglip.checkpoints import Family, read_json
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.precision import Precision
from serve_app.siglip.released import BASE, RELEASED, Released, find_released
from serve_app.towers.loading import UNQUANTIZED
from serve_app.towers.tower import ImageTower, TextTower
from tests.unit.siglip.test_released import hub_config, meta_model

TOLERANCE = 0.02


def kept(name: str) -> bool:
    """Whether a module's name is on the quantiser's skip list."""
    return any(f".{part}." in f".{name}." for part in UNQUANTIZED)


def quantized_bytes(tower: torch.nn.Module, dtype: str, quantization: str) -> int:
    """Return what a tower's weights take, module by module: the storage of bitsandbytes for its
    linear layers.
    """
    total = sum(parameter.numel() for parameter in tower.parameters()) * DTYPE_BYTES[dtype]
    for name, module in tower.named_modules():
        if type(module) is torch.nn.Linear and not kept(name):
            numbers = module.weight.numel()
            scales = (
                4 * module.out_features
                if quantization == "8bit"
                else numbers // 64 + 4 * -(-numbers // (64 * 256))
            )
            total += (
                scales
                + numbers // (1 if quantization == "8bit" else 2)
                - numbers * DTYPE_BYTES[dtype]
            )
    return total


@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
@pytest.mark.parametrize("row", RELEASED, ids=lambda row: row.hub_id)
def test_weights_of_every_checkpoint(row: Released, quantization: str) -> None:
    """Within 2 % for every checkpoint, tower, dtype and quantisation."""
    model = meta_model(row.architecture)
    for tower, parameters in (
        (model.vision_model, row.architecture.vision_parameters),
        (model.text_model, row.architecture.text_parameters),
    ):
        for dtype, size in DTYPE_BYTES.items():
            real = (
                quantized_bytes(tower, dtype, quantization)
                if quantization != "none"
                else sum(p.numel() for p in tower.parameters()) * size
            )
            assert weight_bytes(parameters, dtype, quantization) == pytest.approx(
                real, rel=TOLERANCE
            )


def stored_bytes(model: torch.nn.Module) -> int:
    """Return the bytes that a loaded, perhaps quantised model holds, bitsandbytes' scales among
    them.
    """
    total = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    for parameter in model.parameters():
        scales = getattr(parameter, "SCB", None)
        total += scales.numel() * scales.element_size() if scales is not None else 0
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            total += state.absmax.numel() * state.absmax.element_size()
            total += state.state2.absmax.numel() * 4 if state.nested else 0
    return total


@pytest.fixture(scope="module")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two layers of base width: wide enough that bitsandbytes' own tables of some KiB
    do not count.
    """
    row = find_released("google/siglip-base-patch16-224")
    assert row is not None
    config = hub_config(row.architecture).vision_config
    config.num_hidden_layers = 2
    folder = tmp_path_factory.mktemp("wide")
    SiglipVisionModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_as_bitsandbytes_stores_them(
    wide_checkpoint: Path, dtype: str, quantization: str
) -> None:
    """The real quantiser, on the CPU, on layers of base width."""
    from serve_app.towers.loading import _quantization

    options = {"dtype": getattr(torch, dtype)}
    if quantization != "none":
        options |= {
            "quantization_config": _quantization(Precision("cpu", dtype, "sdpa", quantization)),
            "device_map": {"": "cpu"},
        }
    model = SiglipVisionModel.from_pretrained(wide_checkpoint, **options)
    row = find_released("google/siglip-base-patch16-224")
    assert row is not None
    full = row.architecture.vision_parameters
    layers = Encoder(
        BASE.hidden_size, 10, BASE.num_attention_heads, BASE.intermediate_size
    ).parameters(0)
    two = Parameters(
        full.linear - layers.linear,
        full.linear_rows - layers.linear_rows,
        full.other - layers.other + 2 * BASE.hidden_size,
    )
    assert weight_bytes(two, dtype, quantization) == pytest.approx(
        stored_bytes(model), rel=TOLERANCE
    )


@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
def test_weights_of_the_demo_checkpoint(quantization: str) -> None:
    """Both towers as the service loads them; the smallest checkpoint there is, so a little more
    tolerance for the tables.
    """
    checkpoint = load_checkpoint(str(DEMO_CHECKPOINT))
    shape = read_architecture(read_json(DEMO_CHECKPOINT / "config.json", ""), checkpoint.family)
    precision = Precision("cpu", "float32", "sdpa", quantization)
    for tower, parameters in (
        (ImageTower(checkpoint, precision), shape.vision_parameters),
        (TextTower(checkpoint, precision), shape.text_parameters),
    ):
        assert weight_bytes(parameters, "float32", quantization) == pytest.approx(
            stored_bytes(tower._model), rel=TOLERANCE
        )


def test_activations_grow_with_what_is_processed() -> None:
    """Twice the batch or the patches, eager attention, float32: more memory; quantisation changes
    weights only.
    """
    row = find_released("google/siglip2-base-patch16-naflex")
    assert row is not None
    assert row.family is Family.NAFLEX
    plain = image_footprint(row.architecture, Precision("cuda", "bfloat16", "sdpa", "none"), 8, 256)
    assert (
        image_footprint(
            row.architecture, Precision("cuda", "bfloat16", "sdpa", "none"), 16, 256
        ).activations
        == 2 * plain.activations
    )
    assert (
        image_footprint(
            row.architecture, Precision("cuda", "bfloat16", "sdpa", "none"), 8, 1024
        ).activations
        == 4 * plain.activations
    )
    assert (
        image_footprint(
            row.architecture, Precision("cuda", "bfloat16", "eager", "none"), 8, 256
        ).activations
        > plain.activations
    )
    assert (
        image_footprint(
            row.architecture, Precision("cuda", "float32", "sdpa", "none"), 8, 256
        ).activations
        > plain.activations
    )
    quantized = image_footprint(
        row.architecture, Precision("cuda", "bfloat16", "sdpa", "4bit"), 8, 256
    )
    assert quantized.activations == plain.activations
    assert quantized.weights < plain.weights
    assert plain.needed * 0.8 == pytest.approx(
        plain.weights + plain.activations + plain.process, abs=2
    )
    assert (
        text_footprint(row.architecture, Precision("cuda", "bfloat16", "sdpa", "none")).weights
        == row.architecture.text_parameters.total * 2
    )
