"""What `auto` means for device, dtype and attention on some hardware; combinations that cannot work
are refused.
"""

from dataclasses import dataclass

from serve_app.errors import ConfigError
from serve_app.hardware.detection import Hardware
from serve_app.hardware.plan import Asked, Reason
from serve_app.siglip.checkpoints import Family


@dataclass(frozen=True, slots=True)
class Resolved:
    """Device, dtype, attention and quantisation without an `auto`, why, and what might be
    better.
    """

    device: str
    dtype: str
    attention: str
    quantization: str
    reasons: tuple[Reason, ...]
    advice: tuple[str, ...]


def resolve_precision(
    asked: Asked, family: Family, hardware: Hardware, has_flash_attention: bool
) -> Resolved:
    """Resolve `auto` for some hardware.

    Raises:
        ConfigError: The hardware or the family cannot do what was asked for explicitly.
    """
    device, device_why = _device(asked.device, hardware)
    dtype, dtype_why = _dtype(asked.dtype, device, hardware)
    attention, attention_why = _attention(
        asked.attention, family, device, dtype, hardware, has_flash_attention
    )
    quantization_why = (
        "as asked"
        if asked.quantization != "none"
        else "asked for none; 8bit and 4bit save memory and seldom time"
    )
    reasons = (
        Reason("device", device, device_why),
        Reason("dtype", dtype, dtype_why),
        Reason("attention", attention, attention_why),
        Reason("quantization", asked.quantization, quantization_why),
    )
    return Resolved(
        device,
        dtype,
        attention,
        asked.quantization,
        reasons,
        _advice(asked, device, hardware, has_flash_attention),
    )


def _device(asked: str, hardware: Hardware) -> tuple[str, str]:
    present = {"cuda": hardware.gpus > 0, "mps": hardware.has_mps, "cpu": True}
    if asked == "auto":
        device = next(name for name, there in present.items() if there)
        return device, {
            "cuda": "there are GPUs",
            "mps": "this is Apple silicon",
            "cpu": "there is no GPU",
        }[device]
    if not present[asked]:
        raise ConfigError(
            f"device {asked} was asked for and {hardware.described} has none; use device auto or cpu."
        )
    return asked, "as asked"


def _dtype(asked: str, device: str, hardware: Hardware) -> tuple[str, str]:
    if asked != "auto":
        return asked, "as asked"
    if device == "cuda" and hardware.accelerator is not None:
        if hardware.accelerator.has_bfloat16:
            return (
                "bfloat16",
                f"{hardware.accelerator.name} computes bfloat16, which cannot overflow as float16 can",
            )
        return "float16", f"{hardware.accelerator.name} is older than Ampere and has no bfloat16"
    if device == "cpu" and hardware.has_cpu_bfloat16:
        return "bfloat16", "the CPU has AVX512-BF16 or AMX: about 1.8 times float32"
    if device == "cpu" and hardware.has_cpu_bfloat16 is None:
        return (
            "float32",
            "planned for; a replica takes bfloat16 where its CPU has AVX512-BF16 or AMX",
        )
    return (
        "float32",
        "the CPU has no bfloat16 units"
        if device == "cpu"
        else "float32 is what this device does without surprises",
    )


def _attention(
    asked: str, family: Family, device: str, dtype: str, hardware: Hardware, has_flash: bool
) -> tuple[str, str]:
    obstacle = _flash_obstacle(family, device, dtype, hardware)
    if asked == "flash_attention_2" and obstacle:
        raise ConfigError(f"attention flash_attention_2 {obstacle}; use auto or sdpa.")
    if asked != "auto":
        return asked, "as asked"
    if obstacle is None and has_flash:
        return (
            "flash_attention_2",
            "the flash-attn package is installed and the checkpoint supports it",
        )
    return (
        "sdpa",
        f"flash_attention_2 {obstacle or 'needs the flash-attn package; on CUDA sdpa has flash kernels of its own'}",
    )


def _flash_obstacle(family: Family, device: str, dtype: str, hardware: Hardware) -> str | None:
    if family is Family.NAFLEX:
        return "is not supported by NaFlex checkpoints"
    if device != "cuda" or dtype == "float32":
        return "needs a CUDA device and dtype float16 or bfloat16"
    if hardware.accelerator is not None and not hardware.accelerator.has_bfloat16:
        return f"needs Ampere or newer, and {hardware.accelerator.name} is not"
    return None


def _advice(asked: Asked, device: str, hardware: Hardware, has_flash: bool) -> tuple[str, ...]:
    advice = []
    if asked.attention == "flash_attention_2" and not has_flash:
        advice.append(
            "attention flash_attention_2 needs the flash-attn package on the GPU nodes; it is not installed here."
        )
    if (
        asked.dtype == "bfloat16"
        and device == "cuda"
        and hardware.accelerator
        and not hardware.accelerator.has_bfloat16
    ):
        advice.append(
            f"dtype bfloat16 is emulated on {hardware.accelerator.name}; float16 is many times as fast."
        )
    if asked.dtype == "float32" and device == "cuda":
        advice.append(
            "dtype float32 leaves the tensor cores of the GPU unused; auto takes half precision, scores stay float32."
        )
    if asked.dtype == "float16" and device == "cpu":
        advice.append(
            "dtype float16 is slow on CPUs; auto takes float32, or bfloat16 where the CPU has it."
        )
    if asked.dtype == "bfloat16" and device == "cpu" and hardware.has_cpu_bfloat16 is False:
        advice.append(
            "dtype bfloat16 is emulated on a CPU without AVX512-BF16 or AMX; auto takes float32."
        )
    if asked.attention == "eager":
        advice.append(
            "attention eager keeps the whole attention matrix in memory; sdpa gives the same embeddings."
        )
    return tuple(advice)
