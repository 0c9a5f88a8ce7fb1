"""What a tower runs as: device, dtype, attention kernel, quantisation. `auto` is resolved here; the
rest is checked.

An explicit choice is honoured or refused with the reason, never silently changed.
"""

from importlib.util import find_spec

import torch

from serve_app.errors import ConfigError
from serve_app.siglip.checkpoints import Family
from serve_app.siglip.precision import PROCESS_BYTES, Precision, Runtime

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def resolve_runtime(asked: Precision, family: Family) -> Runtime:
    """Resolve `auto` for this machine and this family.

    Raises:
        ConfigError: The machine or the family cannot do what was asked for explicitly.
    """
    device = _resolve_device(asked.device)
    dtype = _resolve_dtype(asked.dtype, device)
    if asked.quantization != "none" and find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"quantization {asked.quantization} needs the bitsandbytes package, which is not installed."
        )
    return Runtime(
        device,
        dtype,
        _resolve_attention(asked.attention, family, device, dtype),
        asked.quantization,
    )


def _resolve_device(asked: str) -> str:
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if asked == "auto":
        return next(device for device, present in available.items() if present)
    if not available.get(asked, False):
        raise ConfigError(
            f"device {asked} is not available on this machine; use auto or one of {[d for d, p in available.items() if p]}."
        )
    return asked


def _resolve_dtype(asked: str, device: str) -> str:
    if asked != "auto":
        return asked
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if device == "cpu" and cpu_has_bfloat16() else "float32"


def cpu_has_bfloat16() -> bool:
    """Whether this CPU computes bfloat16 in hardware: 1.7 to 1.9 times float32 where it does,
    slower where it does not.
    """
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def cap_gpu_memory(share: float) -> None:
    """Keep this process within its part of the GPU, so that replicas on one GPU cannot starve each
    other.

    Ray's fractions only count; without a cap the first replica's cache may take the whole card.
    What the process takes outside of torch's allocator (`PROCESS_BYTES`) is left out of the part.
    """
    if 0 < share < 1 and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(max(0.01, share - PROCESS_BYTES / total))


def gpu_memory_bytes(device: str) -> dict[str, float]:
    """Return the bytes that this process has in tensors, has reserved from the driver, and may
    reserve; empty without a GPU.
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


def _resolve_attention(asked: str, family: Family, device: str, dtype: str) -> str:
    if asked == "auto":
        return "flash_attention_2" if _can_flash(family, device, dtype) else "sdpa"
    if asked != "flash_attention_2":
        return asked
    if family is Family.NAFLEX:
        raise ConfigError(
            "attention flash_attention_2 is not supported by NaFlex checkpoints; use auto or sdpa."
        )
    if device != "cuda" or dtype == "float32":
        raise ConfigError(
            "attention flash_attention_2 needs a CUDA device and dtype float16 or bfloat16; use auto or sdpa."
        )
    if find_spec("flash_attn") is None:
        raise ConfigError(
            "attention flash_attention_2 needs the flash-attn package, which is not installed; use auto or sdpa."
        )
    return asked


def _can_flash(family: Family, device: str, dtype: str) -> bool:
    """Whether flash_attention_2 runs here: the package, an Ampere or newer card, half precision and
    no NaFlex.
    """
    if (
        family is Family.NAFLEX
        or device != "cuda"
        or dtype == "float32"
        or find_spec("flash_attn") is None
    ):
        return False
    return torch.cuda.get_device_capability()[0] >= 8
