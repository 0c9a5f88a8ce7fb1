"""Plans for GPUs: how many replicas share each, and what feeds them."""

import math
from dataclasses import dataclass

from serve_app.errors import ConfigError
from serve_app.hardware.accelerators import Accelerator
from serve_app.hardware.detection import Hardware
from serve_app.hardware.feeding import PREPROCESSOR_CPUS, bounded, feed
from serve_app.hardware.footprint import Footprint
from serve_app.hardware.gpu_batch_and_share import Sharing, image_seconds, share_gpu
from serve_app.hardware.plan import DeploymentPlan, Plan, gib
from serve_app.hardware.reasons import Reason
from serve_app.hardware.workload import Workload

ENCODER_CPUS = 1.0
"""CPUs of an ImageEncoder where there are enough: launching kernels keeps a core busy."""
TEXT_CPUS = 0.5
POSTPROCESSOR_CPUS = 0.5
"""CPUs of a TextEncoder and of a Postprocessor where there are enough."""
SEED_BATCHES = ((24, "16 to 32"), (16, "8 to 16"), (8, "4 to 8"), (4, "1 to 2"))
"""Memory in GiB and images per batch.

Source: the plugin document's table, which depends on neither checkpoint nor dtype.
"""
SEED_MEMORY_GB = {768: 2, 1024: 4, 1152: 6, 1536: 12}
"""Minimum memory in GB by the image tower's width (base, large, so400m, giant).

Source: the same document, for both towers in float16.
"""


@dataclass(frozen=True, slots=True)
class _Towers:
    """The two deployments that hold a tower, and the rate that they reach together.

    Attributes:
        image: The ImageEncoders.
        text: The TextEncoder.
        images_per_second: Images per second of all ImageEncoders.
    """

    image: DeploymentPlan
    text: DeploymentPlan
    images_per_second: float

    @property
    def cpus(self) -> float:
        return sum(one.num_cpus * one.max_replicas for one in (self.image, self.text))


def plan_gpus(work: Workload) -> Plan:
    """Plan a checkpoint on GPUs.

    Raises:
        ConfigError: The towers do not fit, or the configuration wants more replicas than fit.
    """
    accelerator = work.hardware.accelerator
    assert accelerator is not None, "device cuda was resolved because there is one"
    sharing = share_gpu(work, accelerator)
    towers = _towers(work, sharing, image_seconds(work, accelerator))
    feeding, feeding_why = _feeding(work, towers)
    return Plan(
        checkpoint=work.config.siglip.model_shown,
        hardware=work.hardware,
        precision=work.precision,
        text_precision=work.precision if towers.text.num_gpus else work.text_cpu_precision,
        batch_size=sharing.batch_size,
        image=sharing.image,
        text=sharing.text,
        deployments={"image_encoder": towers.image, "text_encoder": towers.text, **feeding},
        images_per_second=towers.images_per_second,
        reasons=(
            *_sharing_reasons(sharing, accelerator, towers.image, work.hardware),
            _memory_reason(work, sharing, accelerator),
            _rate_reason(work, towers),
            feeding_why,
        ),
        advice=_text_advice(work, sharing),
    )


def _towers(work: Workload, sharing: Sharing, image_s: float) -> _Towers:
    serving = work.config.serving
    hardware = work.hardware
    held = _held_encoders(sharing, hardware)

    # small machines: half of the CPUs for the encoders, an eighth each for text and scores, the
    # rest decodes
    encoder_cpus = max(0.05, min(ENCODER_CPUS, math.floor(hardware.cpus / 2 / held * 20) / 20))
    per_second = 1 / image_s / sharing.encoders
    image = bounded(serving.image_encoder, encoder_cpus, sharing.image_gpus, held, per_second)
    text = bounded(serving.text_encoder, _eighth(hardware), sharing.text_gpus, 1, 0.0)
    _check_held("image_encoder", image, held, hardware)
    _check_held("text_encoder", text, hardware.gpus, hardware)

    busy_gpus = min(hardware.gpus, image.max_replicas / sharing.encoders)
    return _Towers(image, text, busy_gpus / image_s)


def _feeding(work: Workload, towers: _Towers) -> tuple[dict[str, DeploymentPlan], Reason]:
    hardware = work.hardware
    eighth = _eighth(hardware)
    left = max(0.0, hardware.cpus - towers.cpus)
    quarters = math.floor((left - eighth) * 4) / 4
    pre_cpus = max(0.25, min(PREPROCESSOR_CPUS, hardware.node_cpus, quarters))
    post_cpus = min(POSTPROCESSOR_CPUS, eighth)
    return feed(work.config.serving, towers.images_per_second, left, post_cpus, pre_cpus)


def _eighth(hardware: Hardware) -> float:
    """Return the CPUs of the TextEncoder: an eighth of all, up to `TEXT_CPUS`."""
    return max(0.05, min(TEXT_CPUS, math.floor(hardware.cpus / 8 * 20) / 20))


def _held_encoders(sharing: Sharing, hardware: Hardware) -> int:
    """Return the number of ImageEncoders that all GPUs hold.

    A text tower with a whole GPU takes that GPU from them.
    """
    held = sharing.encoders * (hardware.gpus - (1 if sharing.text_gpus >= 1 else 0))
    if held < 1:
        raise ConfigError(
            f"image_encoder takes {sharing.image_gpus:g} GPU and text_encoder "
            f"{sharing.text_gpus:g}, and {hardware.described} has {hardware.gpus}; "
            "leave num_gpus auto, and both fit on one."
        )
    return held


def _check_held(name: str, planned: DeploymentPlan, held: int, hardware: Hardware) -> None:
    if planned.num_gpus and max(planned.max_replicas, planned.min_replicas) > held:
        raise ConfigError(
            f"serving.{name} asks for {planned.max_replicas} replicas of {planned.num_gpus:g} "
            f"GPU, and {hardware.described} holds {held}; ask for {held} or fewer, "
            "or set hardware to what the cluster may grow to."
        )


def _sharing_reasons(
    sharing: Sharing, accelerator: Accelerator, image: DeploymentPlan, hardware: Hardware
) -> tuple[Reason, ...]:
    memory_gib = accelerator.memory_bytes / 2**30
    seed = next((batches for min_gib, batches in SEED_BATCHES if memory_gib >= min_gib), "none")
    seed_why = (
        f"{sharing.batch_why}; the seed table says {seed} for {memory_gib:g} GiB "
        "whatever the checkpoint"
    )
    share_why = (
        f"each needs {gib(sharing.image.needed)}: {_parts(sharing.image)}, and a fifth kept free; "
        f"a {accelerator.name} has {memory_gib:g} GiB"
    )
    text_why = (
        f"needs {gib(sharing.text.needed)}: {gib(sharing.text.weights)} of weights; "
        "labels are encoded once, so it may be slow"
    )
    where = f"{sharing.text_gpus:g} GPU" if sharing.text_gpus else "CPU"
    return (
        Reason("batch_size", str(sharing.batch_size), seed_why),
        Reason("image encoders per GPU", str(sharing.encoders), sharing.encoders_why),
        Reason("image_encoder.num_gpus", f"{sharing.image_gpus:g}", share_why),
        Reason("text_encoder", where, text_why),
        Reason(
            "image_encoder replicas",
            f"at most {image.max_replicas}",
            f"{sharing.encoders} on each of {hardware.gpus} GPUs hold",
        ),
    )


def _memory_reason(work: Workload, sharing: Sharing, accelerator: Accelerator) -> Reason:
    """Return the memory that is taken of a card, beside the seed table's minimum."""
    taken = sharing.encoders * sharing.image.needed
    if sharing.text_gpus:
        taken += sharing.text.needed
    seed_gb = SEED_MEMORY_GB.get(work.shape.vision.hidden_size)
    seed = "does not know this size" if seed_gb is None else f"asks for {seed_gb} GB"
    return Reason(
        "memory of a card",
        f"{gib(taken)} of {gib(accelerator.memory_bytes)}",
        f"all replicas with their headroom; the seed table {seed}",
    )


def _rate_reason(work: Workload, towers: _Towers) -> Reason:
    gflop = work.image_flops / 1e9
    why = f"{gflop:.0f} GFLOP an image at 0.4 of the data sheet; an estimate"
    return Reason("images per second", f"{towers.images_per_second:.0f}", why)


def _text_advice(work: Workload, sharing: Sharing) -> tuple[str, ...]:
    """Say that an explicit dtype or kernel does not apply to a text tower on the CPU."""
    plugin = work.config.siglip
    is_default = plugin.dtype == "auto" and plugin.attention in ("auto", "sdpa")
    if sharing.text_gpus or is_default:
        return ()
    return (
        "the text tower stands on the CPU and takes the CPU's own dtype and sdpa; "
        "give text_encoder a part of a GPU for the others.",
    )


def _parts(footprint: Footprint) -> str:
    return (
        f"{gib(footprint.weights)} of weights, {gib(footprint.activations)} of activations, "
        f"{gib(footprint.process)} of the process"
    )
