"""Plans for GPUs: how many replicas share each, and what feeds them."""

import math

from serve_app.errors import ConfigError
from serve_app.hardware.accelerators import Accelerator
from serve_app.hardware.detection import Hardware
from serve_app.hardware.feeding import PREPROCESSOR_CPUS, bounded, feed
from serve_app.hardware.footprint import Footprint
from serve_app.hardware.plan import Asked, DeploymentPlan, Plan, Reason, gib
from serve_app.hardware.precision import Resolved
from serve_app.hardware.sharing import Sharing, image_seconds, share_gpu
from serve_app.siglip.architecture import Architecture

ENCODER_CPUS = 1.0
TEXT_CPUS = 0.5
POSTPROCESSOR_CPUS = 0.5
"""Where there are CPUs enough. A process that launches kernels keeps a core busy."""
SEED_BATCHES = ((24, "16 to 32"), (16, "8 to 16"), (8, "4 to 8"), (4, "1 to 2"))
"""Memory in GiB and images a batch: the plugin document's table, which knows neither checkpoint nor
dtype."""

SEED_MEMORY_GB = {768: 2, 1024: 4, 1152: 6, 1536: 12}
"""Least memory in GB by the image tower's width (base, large, so400m, giant): the same document's,
for both towers in float16."""


def plan_gpus(
    name: str, shape: Architecture, asked: Asked, hardware: Hardware, resolved: Resolved
) -> Plan:
    """Plan a checkpoint on GPUs.

    Raises:
        ConfigError: The towers do not fit, or more replicas are asked for than the GPUs hold.
    """
    accelerator = hardware.accelerator
    assert accelerator is not None, "device cuda was resolved because there is one"
    sharing = share_gpu(name, shape, resolved, accelerator, asked)
    held = _held_encoders(sharing, hardware)
    # small machines: half of the CPUs for the encoders, an eighth each for text and scores, the
    # rest decodes
    encoder_cpus = max(0.05, min(ENCODER_CPUS, math.floor(hardware.cpus / 2 / held * 20) / 20))
    eighth = max(0.05, min(TEXT_CPUS, math.floor(hardware.cpus / 8 * 20) / 20))
    image_s = image_seconds(shape, accelerator, resolved.dtype, asked.max_num_patches)
    image = bounded(
        asked.scale("image_encoder"),
        encoder_cpus,
        sharing.image_gpus,
        held,
        1 / image_s / sharing.encoders,
    )
    text = bounded(asked.scale("text_encoder"), eighth, sharing.text_gpus, 1, 0.0)
    _check_held("image_encoder", image, held, hardware)
    _check_held("text_encoder", text, hardware.gpus, hardware)
    rate = min(hardware.gpus, image.max_replicas / sharing.encoders) / image_s
    left = max(
        0.0, hardware.cpus - image.num_cpus * image.max_replicas - text.num_cpus * text.max_replicas
    )
    pre_cpus = max(
        0.25, min(PREPROCESSOR_CPUS, hardware.node_cpus, math.floor((left - eighth) * 4) / 4)
    )
    feeding, feeding_why = feed(asked, rate, left, min(POSTPROCESSOR_CPUS, eighth), pre_cpus)
    gflop = shape.image_flops(asked.max_num_patches) / 1e9
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
        reasons=(
            *resolved.reasons,
            *_sharing_reasons(sharing, accelerator, image, hardware),
            _memory_reason(shape, sharing, accelerator),
            Reason(
                "images per second",
                f"{rate:.0f}",
                f"{gflop:.0f} GFLOP an image at 0.4 of the data sheet; an estimate",
            ),
            feeding_why,
        ),
        advice=(*resolved.advice, *_text_advice(asked, sharing)),
    )


def _held_encoders(sharing: Sharing, hardware: Hardware) -> int:
    """Return the ImageEncoders that all GPUs hold; a text tower with a whole GPU takes that from
    them.
    """
    held = sharing.encoders * (hardware.gpus - (1 if sharing.text_gpus >= 1 else 0))
    if held < 1:
        raise ConfigError(
            f"image_encoder takes {sharing.image_gpus:g} GPU and text_encoder {sharing.text_gpus:g}, and {hardware.described} has "
            f"{hardware.gpus}; leave num_gpus auto, and both fit on one."
        )
    return held


def _check_held(name: str, planned: DeploymentPlan, held: int, hardware: Hardware) -> None:
    if planned.num_gpus and max(planned.max_replicas, planned.min_replicas) > held:
        raise ConfigError(
            f"serving.{name} asks for {planned.max_replicas} replicas of {planned.num_gpus:g} GPU, "
            f"and {hardware.described} holds {held}; ask for {held} or fewer, or set hardware to what the cluster may grow to."
        )


def _sharing_reasons(
    sharing: Sharing, accelerator: Accelerator, image: DeploymentPlan, hardware: Hardware
) -> tuple[Reason, ...]:
    memory_gib = accelerator.memory_bytes / 2**30
    seed = next((batches for at_least, batches in SEED_BATCHES if memory_gib >= at_least), "none")
    where = f"{sharing.text_gpus:g} GPU" if sharing.text_gpus else "CPU"
    text_why = f"needs {gib(sharing.text.needed)}: {gib(sharing.text.weights)} of weights; labels are encoded once, so it may be slow"
    card = f"a {accelerator.name} has {memory_gib:g} GiB"
    share_why = f"each needs {gib(sharing.image.needed)}: {_parts(sharing.image)}, and a fifth kept free; {card}"
    seed_why = f"{sharing.batch_why}; the seed table says {seed} for {memory_gib:g} GiB whatever the checkpoint"
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


def _memory_reason(shape: Architecture, sharing: Sharing, accelerator: Accelerator) -> Reason:
    """Return what a card holds in all, beside the seed table's least memory for the checkpoint's
    size.
    """
    taken = sharing.encoders * sharing.image.needed + (
        sharing.text.needed if sharing.text_gpus else 0
    )
    seed = SEED_MEMORY_GB.get(shape.vision.hidden_size)
    told = (
        f"the seed table asks for {seed} GB" if seed else "the seed table does not know this size"
    )
    return Reason(
        "memory of a card",
        f"{gib(taken)} of {gib(accelerator.memory_bytes)}",
        f"all replicas with their headroom; {told}",
    )


def _text_advice(asked: Asked, sharing: Sharing) -> tuple[str, ...]:
    """Say so where what was asked for explicitly is the image tower's only: a text tower on the CPU
    cannot follow it.
    """
    if sharing.text_gpus or (asked.dtype == "auto" and asked.attention in ("auto", "sdpa")):
        return ()
    return (
        "the text tower stands on the CPU and takes the CPU's own dtype and sdpa; give text_encoder a part of a GPU for the others.",
    )


def _parts(footprint: Footprint) -> str:
    return f"{gib(footprint.weights)} of weights, {gib(footprint.activations)} of activations, {gib(footprint.process)} of the process"
