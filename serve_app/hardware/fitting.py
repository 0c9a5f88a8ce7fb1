"""What fits into which part of a GPU, and what would fit where something does not."""

import dataclasses
import math

from serve_app.errors import ConfigError
from serve_app.hardware.accelerators import Accelerator
from serve_app.hardware.footprint import Footprint, image_footprint, text_footprint
from serve_app.hardware.plan import gib
from serve_app.hardware.workload import Workload
from serve_app.siglip.checkpoints import Family
from serve_app.siglip.precision import Precision
from serve_app.siglip.released import RELEASED, Released

MIN_TEXT_SHARE = 0.05
DRIVER = 0.02
"""Fraction of a GPU's memory that the driver keeps."""
OFFERED_PATCHES = 256
"""Patches of an image for which another checkpoint is offered."""


class Fitting:
    """The memory of one GPU and what the towers of a workload need of it."""

    def __init__(self, work: Workload, accelerator: Accelerator) -> None:
        self.work = work
        self.accelerator = accelerator
        self.memory = accelerator.memory_bytes * (1 - DRIVER)

    def image(self, batch_size: int, precision: Precision | None = None) -> Footprint:
        """Return the memory of an ImageEncoder, in the workload's precision or another one."""
        work = self.work
        chosen = work.precision if precision is None else precision
        return image_footprint(work.shape, chosen, batch_size, work.max_num_patches)

    def text(self, on_gpu: bool = True) -> Footprint:
        """Return the memory of a TextEncoder."""
        if on_gpu:
            return text_footprint(self.work.shape, self.work.precision)
        return text_footprint(self.work.shape, self.work.text_cpu_precision, process_bytes=0)

    def fits(self, batch_size: int, share: float) -> bool:
        """Whether an ImageEncoder with such batches fits into a part of the GPU."""
        return self.image(batch_size).needed <= share * self.memory

    def text_shares(self) -> list[float]:
        """Return the parts of a GPU to try for the text tower; 0 is the CPU."""
        fixed = self.work.config.serving.text_encoder.fixed_gpus
        needed = self.text().needed / self.memory
        if fixed is not None:
            self._check_text_share(fixed, needed)
            return [fixed]
        share = max(MIN_TEXT_SHARE, math.ceil(needed * 100) / 100)
        # an explicit device cuda is for both towers, so the text tower must not move to the CPU
        others = [] if self.work.config.siglip.device == "cuda" else [0.0]
        return [share, *others] if share < 1 else others

    def image_shares(self, text_gpus: float, encoders: int) -> list[tuple[int, float]]:
        """Return numbers of ImageEncoders and the part of a GPU of each, the most useful first.

        Args:
            text_gpus: Part of a GPU of the text tower.
            encoders: Number of ImageEncoders that would keep the GPU busy.
        """
        # a text tower with a whole GPU leaves the others whole
        left = 1.0 if text_gpus >= 1 else 1 - text_gpus
        fixed = self.work.config.serving.image_encoder.fixed_gpus
        if fixed is None:
            return [
                (count, math.floor(left / count * 100 + 1e-6) / 100)
                for count in range(encoders, 0, -1)
            ]
        if fixed >= 1:  # not on one GPU with a part of the text tower
            return [(1, fixed)] if text_gpus == 0 or text_gpus >= 1 else []
        held = math.floor(left / fixed + 1e-6)
        return [(held, fixed)] if held else []

    def _check_text_share(self, fixed: float, needed: float) -> None:
        if 0 < fixed < needed:
            raise ConfigError(
                f"serving.text_encoder.num_gpus is {fixed:g}, {gib(fixed * self.memory)} of a "
                f"{self.accelerator.name}, and the text tower needs {gib(self.text().needed)}; "
                f"give it {math.ceil(needed * 100) / 100:g} or auto."
            )


def refusal(work: Workload, fitting: Fitting) -> str:
    """Return one sentence: what does not fit, and what would."""
    batch_size = work.fixed_batch_size or 1
    text_share = min(fitting.text_shares(), default=0.0)
    fixed = work.config.serving.image_encoder.fixed_gpus
    share = 1 - text_share % 1 if fixed is None else fixed
    if fixed is not None and fixed + text_share % 1 > 1:
        return (
            f"{fixed:g} GPU of the image_encoder and {text_share:g} of the text_encoder "
            "are more than one GPU; leave num_gpus auto, and both fit."
        )

    memory = share * fitting.memory
    needed = gib(fitting.image(batch_size).needed)
    if work.config.siglip.device == "cuda":
        needed += f" beside {gib(fitting.text().needed)} of the text tower"
    card = fitting.accelerator.name
    has = f"{card} has" if share >= 1 else f"{share:g} of a {card} is"
    return (
        f"{work.config.siglip.model_shown} in {_described(work.precision)} with batches of "
        f"{batch_size} needs {needed}, and {has} {gib(memory)}; "
        f"{'; '.join(_alternatives(fitting, batch_size, memory))}."
    )


def _described(precision: Precision) -> str:
    if precision.quantization == "none":
        return precision.dtype
    return f"{precision.dtype}, {precision.quantization}"


def _alternatives(fitting: Fitting, batch_size: int, memory: float) -> list[str]:
    """Return what would fit instead, the smallest change first."""
    found = [
        *_larger_share(fitting, batch_size),
        *_smaller_batch(fitting, batch_size, memory),
        *_smaller_precision(fitting, batch_size, memory),
    ]
    if (other := _other_checkpoint(fitting, memory)) is not None:
        found.append(f"{other.hub_id} fits")
    return found or [f"take a GPU with {gib(fitting.image(batch_size).needed)} or more"]


def _larger_share(fitting: Fitting, batch_size: int) -> list[str]:
    needed = fitting.image(batch_size).needed
    is_fixed = fitting.work.config.serving.image_encoder.fixed_gpus is not None
    if is_fixed and needed <= fitting.memory:
        return [f"num_gpus {math.ceil(needed / fitting.memory * 100) / 100:g} fits"]
    return []


def _smaller_batch(fitting: Fitting, batch_size: int, memory: float) -> list[str]:
    for size in range(batch_size - 1, 0, -1):
        if fitting.image(size).needed <= memory:
            return [f"batch_size {size} fits"]
    return []


def _smaller_precision(fitting: Fitting, batch_size: int, memory: float) -> list[str]:
    precision = fitting.work.precision
    found = []
    halved = dataclasses.replace(precision, dtype="float16")
    if precision.dtype == "float32" and fitting.image(batch_size, halved).needed <= memory:
        found.append("dtype float16 fits")
    if precision.quantization != "none":
        return found
    for quantization in ("8bit", "4bit"):
        quantized = dataclasses.replace(precision, quantization=quantization)
        if fitting.image(batch_size, quantized).needed <= memory:
            return [*found, f"quantization {quantization} fits"]
    return found


def _other_checkpoint(fitting: Fitting, memory: float) -> Released | None:
    """Return the most accurate smaller checkpoint of the same kind that fits."""
    shape = fitting.work.shape
    precision = dataclasses.replace(
        fitting.work.precision,
        attention=fitting.work.precision.attention.replace("eager", "sdpa"),
        quantization="none",
    )
    others = [
        row
        for row in RELEASED
        if row.imagenet_accuracy is not None
        and (row.family is Family.NAFLEX) == (shape.family is Family.NAFLEX)
        and row.architecture.vision_parameters.total < shape.vision_parameters.total
        and image_footprint(row.architecture, precision, 1, OFFERED_PATCHES).needed <= memory
    ]
    return max(others, key=lambda row: row.imagenet_accuracy or 0.0, default=None)
