"""How replicas share a GPU: how many image encoders, with what batch, and where the text tower
goes.
"""

import math
from dataclasses import dataclass

from serve_app.errors import ConfigError
from serve_app.hardware.accelerators import Accelerator
from serve_app.hardware.footprint import Footprint, image_footprint, text_footprint
from serve_app.hardware.plan import Asked, gib
from serve_app.hardware.precision import Resolved
from serve_app.siglip.architecture import Architecture
from serve_app.siglip.checkpoints import Family
from serve_app.siglip.precision import PROCESS_BYTES
from serve_app.siglip.released import RELEASED

EFFICIENCY = 0.4
"""Part of the data sheet's FLOP/s that a vision transformer is expected to reach.

Assumed: 0.3 to 0.5 is usual.
"""
TARGET_BATCH_S = 0.03
"""A batch should take about this long: long enough to fill a GPU, short enough that the next one
waits little."""
MIN_AUTO_BATCH = 4
MAX_AUTO_BATCH = 64
HOST_S = 0.005
HOST_S_PER_LAYER = 0.00015
"""Seconds that a process spends per batch besides the GPU's work: unpacking and answering, and a
layer's kernel launches. Assumed from 14 launches of 10 µs a layer; `bench/gpu.py` measures it."""
WORTH_ANOTHER = 0.15
"""Another process shares a GPU when the GPU would otherwise be idle for more than this part of a
batch's time."""
MAX_ENCODERS_PER_GPU = 4
MIN_TEXT_SHARE = 0.05
DRIVER = 0.02
"""Part of a GPU's memory that the driver keeps."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """How one GPU is divided.

    Attributes:
        batch_size: Images in one forward pass of one encoder.
        encoders: ImageEncoders on each GPU.
        image_gpus: Part of a GPU of each.
        text_gpus: Part of a GPU of the TextEncoder; 0 puts it on the CPU.
        image: Memory of an ImageEncoder.
        text: Memory of the TextEncoder.
        encoders_why: Why so many.
        batch_why: Why such batches.
    """

    batch_size: int
    encoders: int
    image_gpus: float
    text_gpus: float
    image: Footprint
    text: Footprint
    encoders_why: str
    batch_why: str


def image_seconds(
    shape: Architecture, accelerator: Accelerator, dtype: str, max_num_patches: int
) -> float:
    """Return the seconds of GPU time that an image is expected to take."""
    rate = accelerator.flops.get(dtype, accelerator.flops["float32"]) * EFFICIENCY
    return shape.image_flops(max_num_patches) / rate


def share_gpu(
    name: str, shape: Architecture, resolved: Resolved, accelerator: Accelerator, asked: Asked
) -> Sharing:
    """Divide a GPU.

    Raises:
        ConfigError: The towers do not fit in it; says what would.
    """
    image_s = image_seconds(shape, accelerator, resolved.dtype, asked.max_num_patches)
    fitting = _Fitting(shape, resolved, accelerator, asked)
    target = asked.batch_size or target_batch(image_s, TARGET_BATCH_S)
    wanted, wanted_why = _wanted_encoders(shape, image_s * target)
    for text_gpus in fitting.text_shares():
        for batch, encoders, image_gpus in _candidates(
            target, fitting.divisions(text_gpus, wanted), asked.batch_size is not None
        ):
            if fitting.fits(batch, image_gpus):
                why = _encoders_why(asked, encoders, wanted, wanted_why)
                image = fitting.image(batch)
                text = fitting.text(on_gpu=text_gpus > 0)
                return Sharing(
                    batch,
                    encoders,
                    image_gpus,
                    text_gpus,
                    image,
                    text,
                    why,
                    _batch_why(asked, batch, target, image_s),
                )
    raise ConfigError(_refusal(name, fitting, asked))


def target_batch(
    image_s: float, seconds: float, least: int = MIN_AUTO_BATCH, most: int = MAX_AUTO_BATCH
) -> int:
    """Return the power of two of images that take about `seconds`, within bounds."""
    power = max(0, math.floor(math.log2(max(1.0, seconds / image_s))))
    return max(least, min(most, 1 << power))


class _Fitting:
    """What fits into which part of a GPU."""

    def __init__(
        self, shape: Architecture, resolved: Resolved, accelerator: Accelerator, asked: Asked
    ) -> None:
        self.shape = shape
        self.resolved = resolved
        self.accelerator = accelerator
        self.asked = asked
        self.memory = accelerator.memory_bytes * (1 - DRIVER)

    def image(self, batch_size: int) -> Footprint:
        precision = (self.resolved.dtype, self.resolved.attention, self.resolved.quantization)
        return image_footprint(self.shape, precision, batch_size, self.asked.max_num_patches)

    def text(self, on_gpu: bool = True) -> Footprint:
        return text_footprint(
            self.shape,
            self.resolved.dtype,
            self.resolved.quantization,
            PROCESS_BYTES if on_gpu else 0,
        )

    def fits(self, batch_size: int, share: float) -> bool:
        return self.image(batch_size).needed <= share * self.memory

    def text_shares(self) -> list[float]:
        """Return the parts of a GPU to try for the text tower: as much as it needs, then none,
        which is the CPU.
        """
        fixed = self.asked.scale("text_encoder").num_gpus
        needed = self.text().needed / self.memory
        if fixed is not None:
            if 0 < fixed < needed:
                raise ConfigError(
                    f"serving.text_encoder.num_gpus is {fixed:g}, {gib(fixed * self.memory)} of a {self.accelerator.name}, and the text "
                    f"tower needs {gib(self.text().needed)}; give it {math.ceil(needed * 100) / 100:g} or auto."
                )
            return [fixed]
        share = max(MIN_TEXT_SHARE, math.ceil(needed * 100) / 100)
        # device cuda was asked for both towers, so the text tower is not moved to the CPU without a
        # word
        others = [] if self.asked.device == "cuda" else [0.0]
        return [share, *others] if share < 1 else others

    def divisions(self, text_gpus: float, wanted: int) -> list[tuple[int, float]]:
        """Return how a GPU may be divided: encoders and the part of each, the most useful first."""
        left = (
            1.0 if text_gpus >= 1 else 1 - text_gpus
        )  # a text tower with a whole GPU leaves the others whole
        fixed = self.asked.scale("image_encoder").num_gpus
        if fixed is None:
            return [
                (encoders, math.floor(left / encoders * 100 + 1e-6) / 100)
                for encoders in range(wanted, 0, -1)
            ]
        if fixed >= 1:  # not on one GPU with a part of the text tower
            return [(1, fixed)] if text_gpus == 0 or text_gpus >= 1 else []
        held = math.floor(left / fixed + 1e-6)
        return [(held, fixed)] if held else []


def _candidates(
    target: int, divisions: list[tuple[int, float]], fixed_batch: bool
) -> list[tuple[int, int, float]]:
    """Return batch, encoders and their part in order of preference: half the batch before fewer
    encoders, a tiny one at last.
    """
    batches = [target] if fixed_batch else [target >> shift for shift in range(target.bit_length())]
    near = batches[:2]
    return [(batch, *division) for division in divisions for batch in near] + [
        (batch, *division) for batch in batches[2:] for division in divisions
    ]


def _encoders_why(asked: Asked, encoders: int, wanted: int, wanted_why: str) -> str:
    if asked.scale("image_encoder").num_gpus is not None:
        return "as many as fit of the part that was asked for"
    return (
        wanted_why
        if encoders == wanted
        else f"{wanted} would be useful ({wanted_why}), and memory holds {encoders}"
    )


def _wanted_encoders(shape: Architecture, batch_s: float) -> tuple[int, str]:
    host_s = HOST_S + HOST_S_PER_LAYER * shape.vision.num_hidden_layers
    idle = host_s / batch_s
    wanted = min(MAX_ENCODERS_PER_GPU, 1 + math.ceil(max(0.0, idle - WORTH_ANOTHER)))
    return (
        wanted,
        f"a batch takes the GPU {batch_s * 1000:.0f} ms and the process {host_s * 1000:.0f} ms besides",
    )


def _batch_why(asked: Asked, batch: int, target: int, image_s: float) -> str:
    if asked.batch_size is not None:
        return "as asked"
    return f"about {batch * image_s * 1000:.0f} ms a batch" + (
        "" if batch == target else f"; {target} would fill the GPU better and do not fit"
    )


def _refusal(name: str, fitting: _Fitting, asked: Asked) -> str:
    """Return one sentence: what does not fit, and what would."""
    batch = asked.batch_size or 1
    text_share = min(fitting.text_shares(), default=0.0)
    fixed = asked.scale("image_encoder").num_gpus
    share = (1 - text_share % 1) if fixed is None else fixed
    if fixed is not None and fixed + text_share % 1 > 1:
        shares = f"{fixed:g} GPU of the image_encoder and {text_share:g} of the text_encoder"
        return f"{shares} are more than one GPU; leave num_gpus auto, and both fit."
    memory = share * fitting.memory
    needed = fitting.image(batch).needed
    resolved = fitting.resolved
    runs_as = (
        resolved.dtype
        if resolved.quantization == "none"
        else f"{resolved.dtype}, {resolved.quantization}"
    )
    beside = (
        f" beside {gib(fitting.text().needed)} of the text tower" if asked.device == "cuda" else ""
    )
    has = (
        f"{fitting.accelerator.name} has {gib(memory)}"
        if share >= 1
        else f"{share:g} of a {fitting.accelerator.name} is {gib(memory)}"
    )
    alternatives = "; ".join(_alternatives(fitting, batch, memory))
    return f"{name} in {runs_as} with batches of {batch} needs {gib(needed)}{beside}, and {has}; {alternatives}."


def _alternatives(fitting: _Fitting, batch: int, memory: float) -> list[str]:
    """Return what would fit instead, the smallest change first."""
    shape = fitting.shape
    resolved = fitting.resolved
    patches = fitting.asked.max_num_patches
    found = []
    smaller = next(
        (size for size in range(batch - 1, 0, -1) if fitting.image(size).needed <= memory), None
    )
    if smaller:
        found.append(f"batch_size {smaller} fits")
    halved = image_footprint(
        shape, ("float16", resolved.attention, resolved.quantization), batch, patches
    )
    if resolved.dtype == "float32" and halved.needed <= memory:
        found.append("dtype float16 fits")
    for quantization in ("8bit", "4bit"):
        precision = (resolved.dtype, resolved.attention, quantization)
        if (
            resolved.quantization == "none"
            and image_footprint(shape, precision, batch, patches).needed <= memory
        ):
            found.append(f"quantization {quantization} fits")
            break
    precision = (
        resolved.dtype,
        "sdpa" if resolved.attention == "eager" else resolved.attention,
        "none",
    )
    others = [
        row
        for row in RELEASED
        if row.imagenet_accuracy is not None
        and (row.family is Family.NAFLEX) == (shape.family is Family.NAFLEX)
        and row.architecture.vision_parameters.total < shape.vision_parameters.total
        and image_footprint(row.architecture, precision, 1, 256).needed <= memory
    ]
    if others:
        best = max(others, key=lambda row: row.imagenet_accuracy or 0.0)
        found.append(f"{best.hub_id} fits")
    needed = fitting.image(batch).needed
    if fitting.asked.scale("image_encoder").num_gpus is not None and needed <= fitting.memory:
        found.insert(0, f"num_gpus {math.ceil(needed / fitting.memory * 100) / 100:g} fits")
    return found or [f"take a GPU with {gib(needed)} or more"]
