"""Measures what preparing images costs, in a process of its own: `python -m tests.hostile.measured
FOLDER`.

Prints one JSON object for each file and quality, and one for each JPEG that is decoded exactly.
Processor time is divided by that of the reference,
`reference.jpg`, measured just before, so that a busy machine slows both.
"""

import collections
import contextlib
import ctypes
import dataclasses
import gc
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from serve_app.errors import RequestError
from serve_app.images.limits import ImageLimits
from serve_app.siglip.checkpoints import Checkpoint
from serve_app.siglip.prepare import ImagePreparer

REFERENCE = "reference.jpg"
REPEATS = 3
EXPECTED_RATIO = 1.2
"""A measurement above this many times the prediction is repeated, since something else may have
run."""

NO_LIMITS = ImageLimits(max_pixels=2**40, max_side_px=2**31, max_cost=1e9, max_decode_bytes=2**50)
MEBI = 1 << 20


def preparer(
    limits: ImageLimits = NO_LIMITS, size_px: int | None = 384, resample: int = 3
) -> ImagePreparer:
    """Return what prepares images for a checkpoint, by default with a bicubic filter; `None` for
    NaFlex.
    """
    facts = SimpleNamespace(image_size_px=size_px, patch_size_px=16, resample=resample)
    return ImagePreparer(cast(Checkpoint, facts), limits, 256)


def seconds_of(preparing: ImagePreparer, data: bytes, views: bool) -> float:
    """Return the CPU seconds of preparing an image once, or of failing to."""
    start = time.process_time()
    with contextlib.suppress(RequestError):
        preparing.prepare_views(data) if views else preparing.prepare(data)
    return time.process_time() - start


class Unit:
    """CPU seconds of the reference: the least of the latest few measurements, and of a new one."""

    def __init__(self, preparing: ImagePreparer, reference: bytes) -> None:
        self._preparing = preparing
        self._reference = reference
        self._latest = collections.deque[float](maxlen=4)

    def measure(self) -> float:
        """Measure the reference once more."""
        self._latest.append(seconds_of(self._preparing, self._reference, views=False))
        return min(self._latest)


def measure(preparing: ImagePreparer, unit: Unit, data: bytes, views: bool) -> dict[str, Any]:
    """Return predicted and measured cost and memory of an image."""
    predicted = preparing.cost_of(data, views)
    ratio = float("inf")
    peak_mib = float("inf")
    for _ in range(REPEATS):
        unit_s = unit.measure()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before_mib = _status_mib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        ratio = min(ratio, seconds_of(preparing, data, views) / unit_s)
        peak_mib = min(peak_mib, _status_mib("VmHWM") - before_mib)
        if ratio < EXPECTED_RATIO * predicted.cost:
            break
    return {
        "predicted": predicted.cost,
        "measured": ratio,
        "predicted_mib": predicted.nbytes / MEBI,
        "measured_mib": peak_mib,
    }


def _status_mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def main(folder: Path) -> None:
    """Measure all files of a folder in both qualities."""
    preparing = preparer()
    preparing_exactly = preparer(dataclasses.replace(NO_LIMITS, decoding="exact"))
    unit = Unit(preparing, (folder / REFERENCE).read_bytes())
    unit.measure()  # loads what is loaded once
    for path in sorted(folder.iterdir()):
        for views in (False, True):
            found = measure(preparing, unit, path.read_bytes(), views)
            print(json.dumps({"name": path.name, "views": views, **found}), flush=True)
        if "JPEG" in path.name:
            found = measure(preparing_exactly, unit, path.read_bytes(), views=False)
            print(json.dumps({"name": path.name, "exact": True, **found}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
