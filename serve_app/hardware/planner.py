"""From a checkpoint, what is asked and the hardware to a plan: dtype, batch, GPU fractions, replicas, and why.

Arithmetic only, standard library only. The numbers it rests on are in `accelerators.py` and `footprint.py`; what was
assumed and not measured says so there.
"""

import math

from serve_app.errors import ConfigError
from serve_app.hardware.accelerators import Accelerator
from serve_app.hardware.detection import CPU_FLOPS, Hardware
from serve_app.hardware.footprint import Footprint, image_footprint, text_footprint
from serve_app.hardware.plan import Asked, AskedScale, DeploymentPlan, Plan, Reason, gib
from serve_app.hardware.precision import Resolved, resolve_precision
from serve_app.hardware.scaling import POSTPROCESSOR_PER_SECOND
from serve_app.hardware.sharing import Sharing, image_seconds, share_gpu, target_batch
from serve_app.siglip.architecture import Architecture

DECODE_S = 0.015
"""Seconds of one CPU to decode and resize a picture of 2 megapixels; measured between 10 and 20 ms. Smaller ones take less."""
PREPROCESSOR_CPUS, TEXT_CPUS, POSTPROCESSOR_CPUS, GPU_ENCODER_CPUS = 2.0, 0.5, 0.5, 1.0
CPU_ENCODER_PART = 0.75
"""Of the CPUs of a machine without a GPU, what the ImageEncoders take; decoding and the rest have the other quarter."""
MAX_THREADS = 8
"""Threads of one ImageEncoder on a CPU; beyond that another replica does more."""
CPU_TARGET_BATCH_S, CPU_MAX_BATCH = 1.0, 16
MAX_TEXT_REPLICAS = 2
SEED_BATCHES = ((24, "16 to 32"), (16, "8 to 16"), (8, "4 to 8"), (4, "1 to 2"))
"""Memory in GiB and images a batch: the plugin document's table, which knows neither checkpoint nor dtype."""


def make_plan(name: str, shape: Architecture, asked: Asked, hardware: Hardware, has_flash_attention: bool = False) -> Plan:
    """Plan a checkpoint on some hardware.

    Args:
        name: The checkpoint's, for messages.
        shape: Its towers.
        asked: What the configuration fixes.
        hardware: What there is, or what the cluster may grow to.
        has_flash_attention: Whether the flash-attn package is installed.

    Raises:
        ConfigError: It cannot work; one sentence with what would.
    """
    resolved = resolve_precision(asked, shape.family, hardware, has_flash_attention)
    if resolved.device == "cuda" and hardware.accelerator is not None:
        return _gpu_plan(name, shape, asked, hardware, hardware.accelerator, resolved)
    return _cpu_plan(name, shape, asked, hardware, resolved)


def _gpu_plan(name: str, shape: Architecture, asked: Asked, hardware: Hardware, accelerator: Accelerator, resolved: Resolved) -> Plan:
    sharing = share_gpu(name, shape, resolved, accelerator, asked)
    image_s = image_seconds(shape, accelerator, resolved.dtype, asked.max_num_patches)
    encoders = sharing.encoders * hardware.gpus if sharing.image_gpus <= 1 else math.floor(hardware.gpus / sharing.image_gpus)
    rate = hardware.gpus / image_s
    image = _deployment(asked.scale("image_encoder"), GPU_ENCODER_CPUS, sharing.image_gpus, encoders, rate / max(1, encoders))
    _check_holds("image_encoder", image, encoders, hardware)
    text = _deployment(asked.scale("text_encoder"), TEXT_CPUS, sharing.text_gpus, MAX_TEXT_REPLICAS if hardware.gpus > 1 else 1, 0.0)
    used = image.num_cpus * image.max_replicas + text.num_cpus * text.max_replicas
    feeding, feeding_reasons = _feeding(asked, rate, max(0.0, hardware.cpus - used))
    reasons = (
        *resolved.reasons,
        *_sharing_reasons(sharing, accelerator, hardware),
        Reason(
            "images per second",
            f"{rate:.0f}",
            f"{shape.image_flops(asked.max_num_patches) / 1e9:.0f} GFLOP an image at 0.4 of the data sheet; an estimate",
        ),
        *feeding_reasons,
    )
    return Plan(
        checkpoint=name,
        hardware=hardware,
        device=resolved.device,
        dtype=resolved.dtype,
        attention=resolved.attention,
        quantization=resolved.quantization,
        batch_size=sharing.batch_size,
        image=sharing.image,
        text=sharing.text,
        deployments={"image_encoder": image, "text_encoder": text, **feeding},
        images_per_second=rate,
        reasons=reasons,
        advice=resolved.advice,
    )


def _cpu_plan(name: str, shape: Architecture, asked: Asked, hardware: Hardware, resolved: Resolved) -> Plan:
    scale = min(1.0, hardware.cpus / 2)  # on less than two CPUs every share shrinks
    part = max(scale, math.floor(hardware.cpus * CPU_ENCODER_PART)) if hardware.cpus >= 2 else scale / 2
    replicas = math.ceil(part / MAX_THREADS)
    num_cpus = asked.scale("image_encoder").num_cpus or (part if replicas == 1 else part // replicas)
    flops = CPU_FLOPS.get(resolved.dtype, CPU_FLOPS["float32"]) * max(1, int(num_cpus))
    image_s = shape.image_flops(asked.max_num_patches) / flops
    batch = asked.batch_size or target_batch(image_s, CPU_TARGET_BATCH_S, least=1, most=CPU_MAX_BATCH)
    rest = max(0.0, hardware.cpus - replicas * num_cpus)
    # one unit for text, one for scores, two for decoding
    unit = max(0.125, min(TEXT_CPUS, math.floor(rest / 4 * 8) / 8))
    image = _deployment(asked.scale("image_encoder"), num_cpus, 0.0, replicas, 1 / image_s)
    text = _deployment(asked.scale("text_encoder"), unit, 0.0, 1, 0.0)
    post = _deployment(asked.scale("postprocessor"), unit, 0.0, 1, POSTPROCESSOR_PER_SECOND)
    pre = _deployment(asked.scale("preprocessor"), 2 * unit, 0.0, 1, max(1.0, 2 * unit) / DECODE_S)
    precision = (resolved.dtype, resolved.attention, resolved.quantization)
    reasons = (
        *resolved.reasons,
        Reason(
            "batch_size",
            str(batch),
            "as asked" if asked.batch_size else f"about {batch * image_s:.1f} s a batch; larger ones gain little on a CPU",
        ),
        Reason(
            "image_encoder",
            f"{image.max_replicas} × {num_cpus:g} CPUs",
            f"three quarters of {hardware.cpus:g} CPUs, at most {MAX_THREADS} threads each",
        ),
        Reason(
            "images per second",
            f"{replicas / image_s:.1f}",
            f"{shape.image_flops(asked.max_num_patches) / 1e9:.1f} GFLOP an image; an estimate",
        ),
        Reason("preprocessor", f"{pre.num_cpus:g} CPUs", "two shares of what is left, the text tower and the scores one each"),
    )
    return Plan(
        checkpoint=name,
        hardware=hardware,
        device=resolved.device,
        dtype=resolved.dtype,
        attention=resolved.attention,
        quantization=resolved.quantization,
        batch_size=batch,
        image=image_footprint(shape, precision, batch, asked.max_num_patches, process_bytes=0),
        text=text_footprint(shape, resolved.dtype, resolved.quantization, process_bytes=0),
        deployments={"image_encoder": image, "text_encoder": text, "postprocessor": post, "preprocessor": pre},
        images_per_second=replicas / image_s,
        reasons=reasons,
        advice=resolved.advice,
    )


def _deployment(asked: AskedScale, num_cpus: float, num_gpus: float, most: int, per_second: float) -> DeploymentPlan:
    """Return a deployment with what is asked in place of what would be planned."""
    if asked.num_replicas is not None:
        least = most = asked.num_replicas
    else:
        most = max(most, 1) if asked.max_replicas is None else asked.max_replicas
        least = min(asked.min_replicas, most)
    cpus = num_cpus if asked.num_cpus is None else asked.num_cpus
    return DeploymentPlan(cpus, num_gpus if asked.num_gpus is None else asked.num_gpus, least, most, per_second)


def _check_holds(name: str, planned: DeploymentPlan, capacity: int, hardware: Hardware) -> None:
    if planned.num_gpus and planned.max_replicas > capacity:
        raise ConfigError(
            f"serving.{name} asks for {planned.max_replicas} replicas of {planned.num_gpus:g} GPU, "
            f"and {hardware.described} holds {capacity}; "
            f"ask for {capacity} or fewer, or set hardware to what the cluster may grow to."
        )


def _feeding(asked: Asked, rate: float, cpus: float) -> tuple[dict[str, DeploymentPlan], tuple[Reason, ...]]:
    """Return the deployments that feed the encoders and take their answers, as many as the CPUs left can hold."""
    wanted_post = max(1, math.ceil(rate / POSTPROCESSOR_PER_SECOND))
    post = _deployment(asked.scale("postprocessor"), POSTPROCESSOR_CPUS, 0.0, wanted_post, POSTPROCESSOR_PER_SECOND)
    asked_pre = asked.scale("preprocessor")
    num_cpus = PREPROCESSOR_CPUS if asked_pre.num_cpus is None else asked_pre.num_cpus
    per_second = max(1.0, num_cpus) / DECODE_S
    wanted = max(1, math.ceil(rate / per_second))
    held = max(1, math.floor(max(0.0, cpus - post.num_cpus * post.max_replicas) / max(num_cpus, 0.01)))
    pre = _deployment(asked_pre, num_cpus, 0.0, min(wanted, held), per_second)
    why = f"decoding takes about {DECODE_S * 1000:.0f} ms of a CPU, so {wanted} of {num_cpus:g} CPUs would keep the encoders busy"
    if held < wanted:
        why += f"; the {cpus:g} CPUs beside the encoders hold {held}, so decoding is what limits: {held * per_second:.0f} images/s"
    return {"preprocessor": pre, "postprocessor": post}, (
        Reason("preprocessor", f"{pre.min_replicas} to {pre.max_replicas} replicas", why),
    )


def _sharing_reasons(sharing: Sharing, accelerator: Accelerator, hardware: Hardware) -> tuple[Reason, ...]:
    memory_gib = accelerator.memory_bytes / 2**30
    seed = next((batches for at_least, batches in SEED_BATCHES if memory_gib >= at_least), "none")
    where = f"{sharing.text_gpus:g} GPU" if sharing.text_gpus else "CPU"
    text_why = f"needs {gib(sharing.text.needed)}: {gib(sharing.text.weights)} of weights; labels are encoded once, so it may be slow"
    return (
        Reason(
            "batch_size",
            str(sharing.batch_size),
            f"{sharing.batch_why}; the seed table says {seed} for {memory_gib:g} GiB whatever the checkpoint",
        ),
        Reason("image encoders per GPU", str(sharing.encoders), sharing.encoders_why),
        Reason(
            "image_encoder.num_gpus",
            f"{sharing.image_gpus:g}",
            f"each needs {gib(sharing.image.needed)}: {_parts(sharing.image)}, and a fifth kept free; "
            f"a {accelerator.name} has {memory_gib:g} GiB",
        ),
        Reason("text_encoder", where, text_why),
        Reason(
            "image_encoder replicas", f"at most {sharing.encoders * hardware.gpus}", f"{sharing.encoders} on each of {hardware.gpus} GPUs"
        ),
    )


def _parts(footprint: Footprint) -> str:
    return f"{gib(footprint.weights)} of weights, {gib(footprint.activations)} of activations, {gib(footprint.process)} of the process"
