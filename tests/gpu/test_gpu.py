"""On a machine with CUDA: dtype, memory against the prediction, quantisation, and the cap of a
shared GPU. `pytest tests/gpu`.

Random weights of released shapes; needs no Ray.
"""

from pathlib import Path

import pytest
import torch

from bench.gpu import inputs_for, load, save_random
from serve_app.config.plugin import SiglipPlugin
from serve_app.hardware.detection import detect_machine
from serve_app.hardware.footprint import image_footprint
from serve_app.hardware.precision import resolve_precision
from serve_app.siglip.checkpoints import Family
from serve_app.siglip.precision import Precision
from serve_app.siglip.released import find_released
from serve_app.towers.runtime import cap_gpu_memory

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs CUDA; bench/gpu.py and this are for such a machine"
)
CHECKPOINTS = (
    "google/siglip2-base-patch16-224",
    "google/siglip2-so400m-patch14-384",
    "google/siglip2-base-patch16-naflex",
)


@pytest.fixture(scope="module", params=CHECKPOINTS)
def tower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """A released shape and a folder with random weights of it."""
    row = find_released(request.param)
    folder: Path = tmp_path_factory.mktemp("tower")
    save_random(row.architecture, folder)
    return row.architecture, folder


@pytest.mark.parametrize(
    ("dtype", "quantization", "least"),
    [("bfloat16", "none", 0.999), ("float16", "none", 0.9999), ("float16", "8bit", 0.999)],
)
@torch.inference_mode()
def test_embeddings_are_those_of_float32(
    tower, dtype: str, quantization: str, least: float
) -> None:  # type: ignore[no-untyped-def]
    """Half precision and 8 bits stay close to float32."""
    shape, folder = tower
    exact, rough = (
        load(shape, folder, kind, "sdpa", bits)(**inputs_for(shape, 4, kind)).pooler_output.float()
        for kind, bits in (("float32", "none"), (dtype, quantization))
    )
    assert torch.nn.functional.cosine_similarity(exact, rough).min() >= least


@pytest.mark.parametrize("batch_size", [1, 16, 64])
@torch.inference_mode()
def test_memory_is_as_predicted(tower, batch_size: int) -> None:  # type: ignore[no-untyped-def]
    """Weights and activations within the headroom of the plan: the prediction with it is not
    exceeded.
    """
    shape, folder = tower
    torch.cuda.empty_cache()
    model = load(shape, folder, "bfloat16", "sdpa", "none")
    batch = inputs_for(shape, batch_size, "bfloat16")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model(**batch)
    weights = sum(parameter.numel() * 2 for parameter in model.parameters())
    peak = weights + torch.cuda.max_memory_allocated() - before
    predicted = image_footprint(
        shape, Precision("cuda", "bfloat16"), batch_size, 256, process_bytes=0
    )
    assert 0.5 * predicted.needed <= peak <= predicted.needed


def test_auto_is_half_precision() -> None:
    """bfloat16 where the card has it, else float16."""
    found = resolve_precision(SiglipPlugin(), Family.SIGLIP2, detect_machine()).precision
    assert (found.device, found.dtype) == (
        "cuda",
        "bfloat16" if torch.cuda.get_device_capability()[0] >= 8 else "float16",
    )


def test_a_replica_is_kept_to_its_part_of_the_gpu() -> None:
    """More than its part is refused to it; after that the cap is lifted again."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    cap_gpu_memory(0.25)
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.empty(total // 3, dtype=torch.uint8, device="cuda")
        torch.empty(total // 10, dtype=torch.uint8, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
