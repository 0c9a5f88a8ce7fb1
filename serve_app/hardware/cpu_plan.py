"""Plans without GPUs: how the CPUs are divided among encoding, decoding and the rest."""

import math

from serve_app.hardware.detection import CPU_FLOPS, Hardware
from serve_app.hardware.feeding import bounded, feed
from serve_app.hardware.footprint import image_footprint, text_footprint
from serve_app.hardware.plan import Asked, Plan, Reason
from serve_app.hardware.precision import Resolved
from serve_app.hardware.sharing import target_batch
from serve_app.siglip.architecture import Architecture

ENCODER_PART = 0.75
"""Of the CPUs, what the ImageEncoders take; decoding and the rest have the other quarter."""
MAX_THREADS = 8
"""Threads of one ImageEncoder; beyond that another replica does more."""
TARGET_BATCH_S = 1.0
MAX_BATCH = 16
SMALL_CPUS = 0.5
"""Most CPUs of a TextEncoder or a Postprocessor."""
SLOW_IMAGE_S = 2.0


def plan_cpus(
    name: str, shape: Architecture, asked: Asked, hardware: Hardware, resolved: Resolved
) -> Plan:
    """Plan a checkpoint on CPUs, or on the one device of Apple silicon."""
    scale = asked.scale("image_encoder")
    part = _encoder_part(hardware.cpus)
    threads = (
        min(MAX_THREADS, max(1.0, math.floor(hardware.node_cpus * ENCODER_PART)))
        if hardware.cpus >= 2
        else part
    )
    replicas = max(1, math.ceil(part / threads))
    num_cpus = (
        scale.num_cpus
        if scale.num_cpus is not None
        else (part if replicas == 1 else max(1, part // replicas))
    )
    flops = CPU_FLOPS.get(resolved.dtype, CPU_FLOPS["float32"]) * max(1, int(num_cpus))
    image_s = shape.image_flops(asked.max_num_patches) / flops
    batch = asked.batch_size or target_batch(image_s, TARGET_BATCH_S, least=1, most=MAX_BATCH)
    image = bounded(scale, num_cpus, 0.0, replicas, 1 / image_s)
    rate = image.max_replicas / image_s
    rest = max(0.0, hardware.cpus - image.max_replicas * num_cpus)
    # four shares of what is left: one for text, one for scores, two or more for decoding
    share = max(0.125, min(SMALL_CPUS, math.floor(rest / 4 * 8) / 8))
    text = bounded(asked.scale("text_encoder"), share, 0.0, 1, 0.0)
    pre_cpus = min(hardware.node_cpus, 2 * share)
    feeding, feeding_why = feed(asked, rate, max(0.0, rest - text.num_cpus), share, pre_cpus)
    precision = (resolved.dtype, resolved.attention, resolved.quantization)
    gflop = shape.image_flops(asked.max_num_patches) / 1e9
    batch_why = (
        "as asked"
        if asked.batch_size
        else f"about {batch * image_s:.1f} s a batch; larger ones gain little on a CPU"
    )
    slow = f"an image is expected to take {image_s:.0f} s here; a smaller checkpoint, more CPUs or a GPU is advised."
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
        deployments={"image_encoder": image, "text_encoder": text, **feeding},
        images_per_second=rate,
        reasons=(
            *resolved.reasons,
            Reason("batch_size", str(batch), batch_why),
            Reason(
                "image_encoder",
                f"{image.max_replicas} × {num_cpus:g} CPUs",
                f"three quarters of {hardware.cpus:g} CPUs, at most {MAX_THREADS} threads each",
            ),
            Reason("images per second", f"{rate:.1f}", f"{gflop:.1f} GFLOP an image; an estimate"),
            feeding_why,
        ),
        advice=(*resolved.advice, slow) if image_s > SLOW_IMAGE_S else resolved.advice,
    )


def _encoder_part(cpus: float) -> float:
    """Return the CPUs for ImageEncoders: three quarters in whole ones; on less than two CPUs
    half.
    """
    return float(max(1, math.floor(cpus * ENCODER_PART))) if cpus >= 2 else cpus / 2
