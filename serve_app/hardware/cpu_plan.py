"""Plans without GPUs: how the CPUs are divided among encoding, decoding and the rest."""

import math
from dataclasses import dataclass

from serve_app.hardware.detection import Hardware
from serve_app.hardware.feeding import bounded, feed
from serve_app.hardware.footprint import image_footprint, text_footprint
from serve_app.hardware.gpu_batch_and_share import target_batch
from serve_app.hardware.plan import DeploymentPlan, Plan
from serve_app.hardware.reasons import Reason
from serve_app.hardware.workload import Workload

CPU_FLOPS = {"float32": 40e9, "bfloat16": 80e9}
"""FLOP/s of one core, for estimates only.

Measured: 35 to 85 GFLOP/s in float32 on two kinds of shared EPYC cores, and 1.8 times that in
bfloat16 where the core has it.
"""
ENCODER_FRACTION = 0.75
"""Fraction of the CPUs for the ImageEncoders; decoding and the rest share what is left."""
MAX_THREADS = 8
"""Maximum number of threads of one ImageEncoder; beyond that another replica gains more."""
TARGET_BATCH_S = 1.0
MAX_BATCH = 16
SMALL_CPUS = 0.5
"""Maximum number of CPUs of a TextEncoder or a Postprocessor."""
SLOW_IMAGE_S = 2.0


@dataclass(frozen=True, slots=True)
class _Encoding:
    """The ImageEncoders of a plan without GPUs.

    Attributes:
        planned: The deployment.
        batch_size: Images in one forward pass.
        image_s: Seconds that one encoder is expected to take for an image.
    """

    planned: DeploymentPlan
    batch_size: int
    image_s: float

    @property
    def images_per_second(self) -> float:
        return self.planned.max_replicas / self.image_s

    @property
    def cpus(self) -> float:
        return self.planned.max_replicas * self.planned.num_cpus


def plan_cpus(work: Workload) -> Plan:
    """Plan a checkpoint on CPUs, or on the one device of Apple silicon."""
    serving = work.config.serving
    hardware = work.hardware
    precision = work.precision
    encoding = _encoding(work)

    # four shares of the rest: one for text, one for scores, two or more for decoding
    rest = max(0.0, hardware.cpus - encoding.cpus)
    share = max(0.125, min(SMALL_CPUS, math.floor(rest / 4 * 8) / 8))
    text = bounded(serving.text_encoder, share, 0.0, 1, 0.0)
    feeding, feeding_why = feed(
        serving,
        encoding.images_per_second,
        cpus=max(0.0, rest - text.num_cpus),
        post_cpus=share,
        pre_cpus=min(hardware.node_cpus, 2 * share),
    )

    return Plan(
        checkpoint=work.config.siglip.model_shown,
        hardware=hardware,
        precision=precision,
        text_precision=precision,
        batch_size=encoding.batch_size,
        image=image_footprint(
            work.shape, precision, encoding.batch_size, work.max_num_patches, process_bytes=0
        ),
        text=text_footprint(work.shape, precision, process_bytes=0),
        deployments={"image_encoder": encoding.planned, "text_encoder": text, **feeding},
        images_per_second=encoding.images_per_second,
        reasons=(*_encoding_reasons(work, encoding), feeding_why),
        advice=_slow_advice(encoding),
    )


def _encoding(work: Workload) -> _Encoding:
    scale = work.config.serving.image_encoder
    replicas, cpus_each = _divided(work.hardware)
    num_cpus = cpus_each if scale.fixed_cpus is None else scale.fixed_cpus

    flops_per_core = CPU_FLOPS.get(work.precision.dtype, CPU_FLOPS["float32"])
    image_s = work.image_flops / (flops_per_core * max(1, int(num_cpus)))
    batch_size = work.fixed_batch_size or target_batch(
        image_s, TARGET_BATCH_S, min_size=1, max_size=MAX_BATCH
    )
    planned = bounded(scale, num_cpus, 0.0, replicas, 1 / image_s)
    return _Encoding(planned, batch_size, image_s)


def _divided(hardware: Hardware) -> tuple[int, float]:
    """Return the number of ImageEncoders and the CPUs of each.

    They take three quarters of the CPUs in whole ones, or half where there are fewer than two.
    """
    if hardware.cpus < 2:
        return 1, hardware.cpus / 2
    cpus = float(max(1, math.floor(hardware.cpus * ENCODER_FRACTION)))
    threads = min(MAX_THREADS, max(1.0, math.floor(hardware.node_cpus * ENCODER_FRACTION)))
    replicas = max(1, math.ceil(cpus / threads))
    return replicas, cpus if replicas == 1 else max(1, cpus // replicas)


def _encoding_reasons(work: Workload, encoding: _Encoding) -> tuple[Reason, ...]:
    batch_s = encoding.batch_size * encoding.image_s
    batch_why = (
        f"about {batch_s:.1f} s a batch; larger ones gain little on a CPU"
        if work.fixed_batch_size is None
        else "as asked"
    )
    planned = encoding.planned
    return (
        Reason("batch_size", str(encoding.batch_size), batch_why),
        Reason(
            "image_encoder",
            f"{planned.max_replicas} × {planned.num_cpus:g} CPUs",
            f"three quarters of {work.hardware.cpus:g} CPUs, at most {MAX_THREADS} threads each",
        ),
        Reason(
            "images per second",
            f"{encoding.images_per_second:.1f}",
            f"{work.image_flops / 1e9:.1f} GFLOP an image; an estimate",
        ),
    )


def _slow_advice(encoding: _Encoding) -> tuple[str, ...]:
    if encoding.image_s <= SLOW_IMAGE_S:
        return ()
    return (
        f"an image is expected to take {encoding.image_s:.0f} s here; "
        "a smaller checkpoint, more CPUs or a GPU is advised.",
    )
