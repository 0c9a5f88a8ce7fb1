"""How the towers are asked to run, and how they do.

What `auto` becomes on a machine is decided in `runtime.py`, which needs torch.
"""

from dataclasses import dataclass

PROCESS_BYTES = 600 * 2**20
"""GPU memory of a process besides its tensors: CUDA context, kernels, cuBLAS workspace. Assumed
from what is usually seen on Ampere and newer, 450 to 600 MiB; not measured here."""


@dataclass(frozen=True, slots=True)
class Precision:
    """What was asked for: values of the plugin schema, `auto` where the machine decides."""

    device: str = "auto"
    dtype: str = "auto"
    attention: str = "auto"
    quantization: str = "none"


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a tower runs as, every `auto` resolved.

    Attributes:
        device: A torch device such as `cuda` or `cpu`.
        dtype: `float32`, `float16` or `bfloat16`, of weights and activations.
        attention: `sdpa`, `eager` or `flash_attention_2`, transformers' `attn_implementation`.
        quantization: `none`, `8bit` or `4bit`.
    """

    device: str
    dtype: str
    attention: str
    quantization: str
