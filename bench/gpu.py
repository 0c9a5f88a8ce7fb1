"""Measures checkpoints on a GPU: images per second and memory by kernel, dtype and quantisation.

`python -m bench.gpu [--only base-224 ...] [--json FILE]` needs a machine with CUDA, Python 3.11,
torch 2.11 and transformers 5.17 or newer, and no Ray. The weights are random, with the released
shapes. The ceiling is measured in the same run: the FLOP/s of a large matrix product in the same
dtype.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    BitsAndBytesConfig,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from serve_app.hardware.footprint import PROCESS_BYTES, image_footprint
from serve_app.siglip.architecture import Architecture
from serve_app.siglip.checkpoints import Family
from serve_app.siglip.precision import Precision
from serve_app.siglip.released import find_released
from serve_app.towers.loading import UNQUANTIZED

CHECKPOINTS = {
    "base-224": "google/siglip2-base-patch16-224",
    "so400m-384": "google/siglip2-so400m-patch14-384",
    "so400m-patch16-256": "google/siglip2-so400m-patch16-256",
    "large-512": "google/siglip2-large-patch16-512",
    "giant-384": "google/siglip2-giant-opt-patch16-384",
    "naflex": "google/siglip2-base-patch16-naflex",
}
VARIANTS = (
    ("bfloat16", "sdpa", "none", False),
    ("float16", "sdpa", "none", False),
    ("float32", "sdpa", "none", False),
    ("bfloat16", "eager", "none", False),
    ("bfloat16", "flash_attention_2", "none", False),
    ("bfloat16", "sdpa", "none", True),
    ("float16", "sdpa", "8bit", False),
    ("bfloat16", "sdpa", "4bit", False),
)
"""dtype, attention, quantisation, and whether torch.compile is on."""
BATCHES = (1, 4, 16, 64)
REPEATS = 10
WARM_UPS = 3
MATMUL_SIDE = 8_192


@dataclasses.dataclass(frozen=True)
class Measured:
    """One line of the table.

    torch counts `peak_bytes`; `predicted_bytes` are those of weights and activations.
    """

    checkpoint: str
    dtype: str
    attention: str
    quantization: str
    compiled: bool
    batch_size: int
    images_per_second: float
    of_ceiling: float
    peak_bytes: int
    predicted_bytes: int
    cosine_to_float32: float


def ceiling_flops(dtype: torch.dtype) -> float:
    """Return the FLOP/s of a large matrix product."""
    a = torch.randn(MATMUL_SIDE, MATMUL_SIDE, device="cuda", dtype=dtype)
    b = torch.randn(MATMUL_SIDE, MATMUL_SIDE, device="cuda", dtype=dtype)
    return 2 * MATMUL_SIDE**3 / median_seconds(lambda: a @ b)


def median_seconds(work: Any) -> float:
    """Return the median time of one call until the GPU has finished."""
    for _ in range(WARM_UPS):
        work()
    times = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def save_random(shape: Architecture, folder: Path) -> None:
    """Write a vision tower with random weights of a released shape."""
    torch.manual_seed(0)
    sizes = {
        key: getattr(shape.vision, key)
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    }
    if shape.family is Family.NAFLEX:
        Siglip2VisionModel(
            Siglip2VisionConfig(
                **sizes, patch_size=shape.patch_size_px, num_patches=shape.num_patches
            )
        ).save_pretrained(folder)
    else:
        SiglipVisionModel(
            SiglipVisionConfig(
                **sizes, patch_size=shape.patch_size_px, image_size=shape.image_size_px
            )
        ).save_pretrained(folder)


def load(shape: Architecture, folder: Path, dtype: str, attention: str, quantization: str) -> Any:
    """Load the tower as the service does."""
    kind = Siglip2VisionModel if shape.family is Family.NAFLEX else SiglipVisionModel
    options: dict[str, Any] = {
        "dtype": getattr(torch, dtype),
        "attn_implementation": attention,
        "device_map": {"": 0},
    }
    if quantization == "8bit":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_skip_modules=list(UNQUANTIZED)
        )
    elif quantization == "4bit":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, dtype),
            bnb_4bit_use_double_quant=True,
            llm_int8_skip_modules=list(UNQUANTIZED),
        )
    return kind.from_pretrained(folder, **options).eval()


def inputs_for(shape: Architecture, batch_size: int, dtype: str) -> dict[str, torch.Tensor]:
    """Return a batch of noise on the GPU."""
    generator = torch.Generator(device="cuda").manual_seed(1)
    if shape.image_size_px is not None:
        side = shape.image_size_px
        return {
            "pixel_values": torch.rand(
                batch_size, 3, side, side, device="cuda", generator=generator
            ).to(getattr(torch, dtype))
            * 2
            - 1
        }
    tokens = shape.num_patches
    side = int(shape.num_patches**0.5)
    pixels = (
        torch.rand(
            batch_size, tokens, shape.patch_size_px**2 * 3, device="cuda", generator=generator
        ).to(getattr(torch, dtype))
        * 2
        - 1
    )
    mask = torch.ones(batch_size, tokens, dtype=torch.int32, device="cuda")
    return {
        "pixel_values": pixels,
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([[side, side]] * batch_size),
    }


@torch.inference_mode()
def measure(
    name: str,
    shape: Architecture,
    folder: Path,
    variant: tuple[str, str, str, bool],
    ceilings: dict[str, float],
) -> list[Measured]:
    """Measure one variant at every batch size that fits."""
    dtype, attention, quantization, compiled = variant
    torch.cuda.empty_cache()
    reference = load(shape, folder, "float32", "sdpa", "none")(
        **inputs_for(shape, 4, "float32")
    ).pooler_output.float()
    torch.cuda.empty_cache()
    model = load(shape, folder, dtype, attention, quantization)
    got = model(**inputs_for(shape, 4, dtype)).pooler_output.float()
    cosine = float(torch.nn.functional.cosine_similarity(reference, got).min())
    call = torch.compile(model) if compiled else model
    rows = []
    for batch_size in BATCHES:
        batch = inputs_for(shape, batch_size, dtype)
        torch.cuda.reset_peak_memory_stats()
        try:
            seconds = median_seconds(lambda batch=batch: call(**batch))
        except torch.cuda.OutOfMemoryError:
            print(f"{name} {variant} batch {batch_size}: out of memory", flush=True)
            break
        predicted = image_footprint(
            shape, Precision("cuda", dtype, attention, quantization), batch_size, 256
        )
        rate = batch_size / seconds
        rows.append(
            Measured(
                name,
                *variant,
                batch_size,
                rate,
                rate * shape.image_flops() / ceilings[dtype],
                torch.cuda.max_memory_allocated(),
                predicted.weights + predicted.activations,
                cosine,
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(CHECKPOINTS), choices=list(CHECKPOINTS))
    parser.add_argument("--json", type=Path, help="write the rows here too")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device on this machine; nothing was measured")
    torch.backends.cuda.matmul.allow_tf32 = False
    print_device()
    ceilings = {
        dtype: ceiling_flops(getattr(torch, dtype)) for dtype in ("float32", "float16", "bfloat16")
    }
    shown = ", ".join(f"{dtype} {rate / 1e12:.0f}" for dtype, rate in ceilings.items())
    print(f"ceiling, TFLOP/s: {shown}", flush=True)
    columns = ["checkpoint", "dtype", "attention", "quantisation", "compiled", "batch", "images/s"]
    columns += ["of ceiling", "peak MiB", "predicted MiB", "cosine"]
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    rows = [row for name in given.only for row in measure_checkpoint(name, ceilings)]
    if given.json:
        given.json.write_text(json.dumps([dataclasses.asdict(line) for line in rows], indent=1))
    errors = [line.predicted_bytes / line.peak_bytes for line in rows]
    print(
        f"\npredicted of measured memory: median {np.median(errors):.2f}, "
        f"{min(errors):.2f} to {max(errors):.2f}"
    )


def print_device() -> None:
    """Print the GPU, and how much of its memory the process takes apart from tensors."""
    free_before, total = torch.cuda.mem_get_info()
    torch.zeros(1, device="cuda") @ torch.zeros(1, device="cuda")
    context = total - torch.cuda.mem_get_info()[0] - torch.cuda.memory_reserved()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; "
        f"of the process besides tensors {context / 2**20:.0f} MiB at most, "
        f"assumed {PROCESS_BYTES / 2**20:.0f}; "
        f"{(total - free_before) / 2**20:.0f} MiB were taken before",
        flush=True,
    )


def measure_checkpoint(name: str, ceilings: dict[str, float]) -> list[Measured]:
    """Measure every variant of a checkpoint, and print it."""
    row = find_released(CHECKPOINTS[name])
    assert row is not None
    lines: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        save_random(row.architecture, Path(folder))
        for variant in VARIANTS:
            try:
                measured = measure(name, row.architecture, Path(folder), variant, ceilings)
            except (ImportError, ValueError) as error:
                reason = str(error).splitlines()[0]
                print(f"{name} {variant}: not possible here: {reason}", flush=True)
                continue
            for line in measured:
                _print(line)
            lines += measured
    return lines


def _print(line: Measured) -> None:
    cells = [
        line.checkpoint,
        line.dtype,
        line.attention,
        line.quantization,
        str(line.compiled),
        str(line.batch_size),
        f"{line.images_per_second:.0f}",
        f"{line.of_ceiling:.2f}",
        f"{line.peak_bytes / 2**20:.0f}",
        f"{line.predicted_bytes / 2**20:.0f}",
        f"{line.cosine_to_float32:.5f}",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
