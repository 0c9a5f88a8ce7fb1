"""What a tower runs as.

Not here: what `auto` in a configuration becomes (`hardware/precision.py`), and how a tower applies
it (`towers/tower.py`).
"""

from dataclasses import dataclass

PROCESS_BYTES = 600 * 2**20
"""GPU memory of a process besides its tensors: CUDA context, kernels, cuBLAS workspace.

Assumed from the 450 to 600 MiB that are usual on Ampere and newer cards; not measured here.
"""


@dataclass(frozen=True, slots=True)
class Precision:
    """Device, dtype, attention kernel and quantization of a tower, with nothing left `auto`.

    The defaults are the reference that every machine can compute.

    Attributes:
        device: `cuda`, `mps` or `cpu`.
        dtype: `float32`, `float16` or `bfloat16`, of weights and activations.
        attention: `sdpa`, `eager` or `flash_attention_2`, transformers' `attn_implementation`.
        quantization: `none`, `8bit` or `4bit`.
    """

    device: str = "cpu"
    dtype: str = "float32"
    attention: str = "sdpa"
    quantization: str = "none"
