"""Applying a precision to this process: what torch can run here, threads and GPU memory.

Not here: what `auto` becomes (`hardware/precision.py`). A precision is applied as it is or refused
with the reason, and never changed.
"""

from importlib.util import find_spec

import torch

from serve_app.errors import ConfigError
from serve_app.siglip.precision import PROCESS_BYTES, Precision

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def check_runs_here(precision: Precision) -> None:
    """Check that this process has the device and the packages of a precision.

    Raises:
        ConfigError: Something is missing; the message says what to use instead.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if not available[precision.device]:
        usable = ", ".join(device for device, is_present in available.items() if is_present)
        raise ConfigError(
            f"device {precision.device} is not available to torch {torch.__version__} here; "
            f"set device to auto or one of {usable}, or install a torch that has it."
        )
    if precision.quantization != "none" and find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"quantization {precision.quantization} needs the bitsandbytes package, "
            "which is not installed."
        )
    if precision.attention == "flash_attention_2" and find_spec("flash_attn") is None:
        raise ConfigError(
            "attention flash_attention_2 needs the flash-attn package, which is not installed "
            "here; use auto or sdpa."
        )


def limit_threads(num_threads: int) -> None:
    """Set the number of CPU threads of a forward pass; 0 leaves it to torch."""
    if num_threads:
        torch.set_num_threads(num_threads)


def cap_gpu_memory(share: float) -> None:
    """Keep this process within its part of the GPU, so that replicas cannot starve each other.

    Ray only counts fractions; without a cap the first replica's cache may take the whole card. What
    the process takes outside of torch's allocator (`PROCESS_BYTES`) is subtracted from the part.
    """
    if 0 < share < 1 and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(max(0.01, share - PROCESS_BYTES / total))


def gpu_memory_bytes(device: str) -> dict[str, float]:
    """Return this process's GPU memory in bytes; empty without a GPU.

    `allocated` is in tensors, `reserved` is taken from the driver, `limit` may be reserved.
    """
    if device != "cuda":
        return {}
    total = torch.cuda.get_device_properties(0).total_memory
    limit = total * torch.cuda.get_per_process_memory_fraction()
    return {
        "allocated": torch.cuda.memory_allocated(),
        "reserved": torch.cuda.memory_reserved(),
        "limit": limit,
    }
