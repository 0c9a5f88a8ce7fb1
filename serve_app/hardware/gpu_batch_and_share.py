"""How replicas share a GPU: the number of image encoders, their batch, and the text tower's place.

Not here: what fits into a part of a GPU (`fitting.py`), and the other deployments
(`gpu_plan.py`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from serve_app.errors import ConfigError
from serve_app.hardware.accelerators import Accelerator
from serve_app.hardware.fitting import Fitting, refusal
from serve_app.hardware.footprint import Footprint
from serve_app.hardware.workload import Workload
from serve_app.siglip.architecture import Architecture

EFFICIENCY = 0.4
"""Fraction of the data sheet's FLOP/s that a vision transformer is expected to reach.

Assumed: 0.3 to 0.5 is usual.
"""
TARGET_BATCH_S = 0.03
"""Seconds that a batch should take: long enough to fill a GPU, short enough that the next batch
waits little."""
MIN_AUTO_BATCH = 4
MAX_AUTO_BATCH = 64
HOST_S = 0.005
HOST_S_PER_LAYER = 0.00015
"""Seconds that a process spends per batch besides the GPU's work: unpacking, answering, and the
kernel launches of each layer.

Assumed from 14 launches of 10 µs a layer; `bench/gpu.py` measures it.
"""
WORTH_ANOTHER = 0.15
"""Another process shares a GPU that would otherwise be idle for more than this fraction of a
batch's time."""
MAX_ENCODERS_PER_GPU = 4


@dataclass(frozen=True, slots=True)
class Sharing:
    """How one GPU is divided.

    Attributes:
        batch_size: Images in one forward pass of one encoder.
        encoders: ImageEncoders on each GPU.
        image_gpus: Fraction of a GPU of each ImageEncoder.
        text_gpus: Fraction of a GPU of the TextEncoder; 0 puts it on the CPU.
        image: Memory of an ImageEncoder.
        text: Memory of the TextEncoder.
        encoders_why: Reason for the number of encoders.
        batch_why: Reason for the batch size.
    """

    batch_size: int
    encoders: int
    image_gpus: float
    text_gpus: float
    image: Footprint
    text: Footprint
    encoders_why: str
    batch_why: str


class _Wanted(NamedTuple):
    """The sharing that would keep a GPU busy, whether or not it fits."""

    batch_size: int
    encoders: int
    why: str


class _Division(NamedTuple):
    """One way to divide a GPU."""

    batch_size: int
    encoders: int
    image_gpus: float
    text_gpus: float


def image_seconds(work: Workload, accelerator: Accelerator) -> float:
    """Return the seconds of GPU time that one image is expected to take."""
    flops = accelerator.flops.get(work.precision.dtype, accelerator.flops["float32"])
    return work.image_flops / (flops * EFFICIENCY)


def target_batch(
    image_s: float, seconds: float, min_size: int = MIN_AUTO_BATCH, max_size: int = MAX_AUTO_BATCH
) -> int:
    """Return the power of two of images that take about `seconds`, within bounds."""
    power = max(0, math.floor(math.log2(max(1.0, seconds / image_s))))
    return max(min_size, min(max_size, 1 << power))


def share_gpu(work: Workload, accelerator: Accelerator) -> Sharing:
    """Divide a GPU.

    Raises:
        ConfigError: The towers do not fit on it; the message says what would.
    """
    image_s = image_seconds(work, accelerator)
    fitting = Fitting(work, accelerator)
    batch_size = work.fixed_batch_size or target_batch(image_s, TARGET_BATCH_S)
    wanted = _wanted(work.shape, batch_size, image_s)
    for division in _divisions(work, fitting, wanted):
        if fitting.fits(division.batch_size, division.image_gpus):
            return Sharing(
                *division,
                image=fitting.image(division.batch_size),
                text=fitting.text(on_gpu=division.text_gpus > 0),
                encoders_why=_encoders_why(work, division, wanted),
                batch_why=_batch_why(work, division, wanted, image_s),
            )
    raise ConfigError(refusal(work, fitting))


def _wanted(shape: Architecture, batch_size: int, image_s: float) -> _Wanted:
    batch_s = image_s * batch_size
    host_s = HOST_S + HOST_S_PER_LAYER * shape.vision.num_hidden_layers
    idle = host_s / batch_s
    encoders = min(MAX_ENCODERS_PER_GPU, 1 + math.ceil(max(0.0, idle - WORTH_ANOTHER)))
    why = (
        f"a batch takes the GPU {batch_s * 1000:.0f} ms "
        f"and the process {host_s * 1000:.0f} ms besides"
    )
    return _Wanted(batch_size, encoders, why)


def _divisions(work: Workload, fitting: Fitting, wanted: _Wanted) -> Iterator[_Division]:
    """Yield ways to divide a GPU in order of preference.

    Half of the batch comes before fewer encoders, and a tiny batch comes last.
    """
    batches = [wanted.batch_size]
    if work.fixed_batch_size is None:
        batches = [wanted.batch_size >> shift for shift in range(wanted.batch_size.bit_length())]
    for text_gpus in fitting.text_shares():
        shares = fitting.image_shares(text_gpus, wanted.encoders)
        for encoders, image_gpus in shares:
            for batch_size in batches[:2]:
                yield _Division(batch_size, encoders, image_gpus, text_gpus)
        for batch_size in batches[2:]:
            for encoders, image_gpus in shares:
                yield _Division(batch_size, encoders, image_gpus, text_gpus)


def _encoders_why(work: Workload, division: _Division, wanted: _Wanted) -> str:
    if work.config.serving.image_encoder.fixed_gpus is not None:
        return "as many as fit of the part that was asked for"
    if division.encoders == wanted.encoders:
        return wanted.why
    return f"{wanted.encoders} would be useful ({wanted.why}), and memory holds {division.encoders}"


def _batch_why(work: Workload, division: _Division, wanted: _Wanted, image_s: float) -> str:
    if work.fixed_batch_size is not None:
        return "as asked"
    why = f"about {division.batch_size * image_s * 1000:.0f} ms a batch"
    if division.batch_size == wanted.batch_size:
        return why
    return f"{why}; {wanted.batch_size} would fill the GPU better and do not fit"
