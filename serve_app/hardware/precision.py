"""What `auto` means for device, dtype and attention on given hardware.

This is the only place that resolves `auto`. It is a pure function: what has to be probed (GPUs,
bfloat16 units of the CPU, the flash-attn package) comes in with `Hardware`. The towers apply the
result or fail with an error (`towers/runtime.py`); they never choose another value.
"""

from typing import NamedTuple

from serve_app.config.plugin import SiglipPlugin
from serve_app.errors import ConfigError
from serve_app.hardware.detection import Hardware
from serve_app.hardware.reasons import Reason
from serve_app.siglip.checkpoints import Family
from serve_app.siglip.precision import Precision


class Resolution(NamedTuple):
    """A resolved precision, the reason for each of its values, and advice about explicit ones."""

    precision: Precision
    reasons: tuple[Reason, ...]
    advice: tuple[str, ...]


def resolve_precision(plugin: SiglipPlugin, family: Family, hardware: Hardware) -> Resolution:
    """Resolve `auto` for some hardware.

    Raises:
        ConfigError: The hardware or the checkpoint's family cannot run an explicit value.
    """
    device = _device(plugin.device, hardware)
    dtype = _dtype(plugin.dtype, device.value, hardware)
    attention = _attention(plugin.attention, family, device.value, dtype.value, hardware)
    quantization_why = (
        "asked for none; 8bit and 4bit save memory and seldom time"
        if plugin.quantization == "none"
        else AS_REQUESTED
    )
    quantization = Reason("quantization", plugin.quantization, quantization_why)

    reasons = (device, dtype, attention, quantization)
    precision = Precision(*(reason.value for reason in reasons))
    return Resolution(precision, reasons, _advice(plugin, device.value, hardware))


def cpu_text_precision(plugin: SiglipPlugin, hardware: Hardware) -> Precision:
    """Return what the text tower runs as on a CPU beside an image tower on GPUs.

    The GPU's dtype and kernel would be slow or missing there, so it takes the CPU's own.
    """
    dtype = "bfloat16" if hardware.has_cpu_bfloat16 else "float32"
    return Precision("cpu", dtype, "sdpa", plugin.quantization)


AS_REQUESTED = "as asked"


def _device(requested: str, hardware: Hardware) -> Reason:
    present = {"cuda": hardware.gpus > 0, "mps": hardware.has_mps, "cpu": True}
    if requested != "auto":
        if not present[requested]:
            raise ConfigError(
                f"device {requested} was asked for and {hardware.described} has none; "
                "use device auto or cpu."
            )
        return Reason("device", requested, AS_REQUESTED)

    device = next(name for name, is_present in present.items() if is_present)
    why = {"cuda": "there are GPUs", "mps": "this is Apple silicon", "cpu": "there is no GPU"}
    return Reason("device", device, why[device])


def _dtype(requested: str, device: str, hardware: Hardware) -> Reason:
    if requested != "auto":
        return Reason("dtype", requested, AS_REQUESTED)
    match device:
        case "cuda":
            return _cuda_dtype(hardware)
        case "cpu":
            return _cpu_dtype(hardware)
        case _:
            why = "float32 is what this device does without surprises"
            return Reason("dtype", "float32", why)


def _cuda_dtype(hardware: Hardware) -> Reason:
    accelerator = hardware.accelerator
    assert accelerator is not None, "hardware with GPUs names their kind"
    if accelerator.has_bfloat16:
        why = f"{accelerator.name} computes bfloat16, which cannot overflow as float16 can"
        return Reason("dtype", "bfloat16", why)
    why = f"{accelerator.name} is older than Ampere and has no bfloat16"
    return Reason("dtype", "float16", why)


def _cpu_dtype(hardware: Hardware) -> Reason:
    if hardware.has_cpu_bfloat16:
        why = "the CPU has AVX512-BF16 or AMX: about 1.8 times float32"
        return Reason("dtype", "bfloat16", why)
    if hardware.has_cpu_bfloat16 is None:
        why = (
            "assumed, since these CPUs were not probed; a service probes its nodes when it starts "
            "and takes bfloat16 where all have AVX512-BF16 or AMX"
        )
        return Reason("dtype", "float32", why)
    return Reason("dtype", "float32", "the CPU has no bfloat16 units")


def _attention(
    requested: str, family: Family, device: str, dtype: str, hardware: Hardware
) -> Reason:
    obstacle = _flash_obstacle(family, device, dtype, hardware)
    if requested == "flash_attention_2" and obstacle is not None:
        raise ConfigError(f"attention flash_attention_2 {obstacle}; use auto or sdpa.")
    if requested != "auto":
        return Reason("attention", requested, AS_REQUESTED)
    if obstacle is not None:
        return Reason("attention", "sdpa", f"flash_attention_2 {obstacle}")

    match hardware.has_flash_attention:
        case True:
            why = "the flash-attn package is installed and the checkpoint supports it"
            return Reason("attention", "flash_attention_2", why)
        case False:
            why = (
                "flash_attention_2 needs the flash-attn package; "
                "on CUDA sdpa has flash kernels of its own"
            )
        case None:
            why = (
                "assumed, since these nodes were not probed; a service probes its nodes when it "
                "starts and takes flash_attention_2 where all have the flash-attn package"
            )
    return Reason("attention", "sdpa", why)


def _flash_obstacle(family: Family, device: str, dtype: str, hardware: Hardware) -> str | None:
    if family is Family.NAFLEX:
        return "is not supported by NaFlex checkpoints"
    if device != "cuda" or dtype == "float32":
        return "needs a CUDA device and dtype float16 or bfloat16"
    if hardware.accelerator is not None and not hardware.accelerator.has_bfloat16:
        return f"needs Ampere or newer, and {hardware.accelerator.name} is not"
    return None


def _advice(plugin: SiglipPlugin, device: str, hardware: Hardware) -> tuple[str, ...]:
    """Return a sentence for each explicit value that costs more than `auto` would."""
    advice = _dtype_advice(plugin.dtype, device, hardware)
    if plugin.attention == "flash_attention_2" and not hardware.has_flash_attention:
        where = "" if hardware.has_flash_attention is None else "; it is not installed here"
        advice.append(
            f"attention flash_attention_2 needs the flash-attn package on the GPU nodes{where}."
        )
    if plugin.attention == "eager":
        advice.append(
            "attention eager keeps the whole attention matrix in memory; "
            "sdpa gives the same embeddings."
        )
    return tuple(advice)


def _dtype_advice(dtype: str, device: str, hardware: Hardware) -> list[str]:
    accelerator = hardware.accelerator
    match device, dtype:
        case "cuda", "bfloat16" if accelerator is not None and not accelerator.has_bfloat16:
            return [
                f"dtype bfloat16 is emulated on {accelerator.name}; float16 is many times as fast."
            ]
        case "cuda", "float32":
            return [
                "dtype float32 leaves the tensor cores of the GPU unused; "
                "auto takes half precision, scores stay float32."
            ]
        case "cpu", "float16":
            return [
                "dtype float16 is slow on CPUs; auto takes float32, "
                "or bfloat16 where the CPU has it."
            ]
        case "cpu", "bfloat16" if hardware.has_cpu_bfloat16 is False:
            return [
                "dtype bfloat16 is emulated on a CPU without AVX512-BF16 or AMX; "
                "auto takes float32."
            ]
    return []
