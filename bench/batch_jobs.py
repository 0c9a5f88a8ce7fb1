"""Measures batch jobs: `python -m bench.batch_jobs encoder|memory [--images N] [--rounds R]`.

`encoder` compares the raw encoder on prepared images, our job, and Ray Data's example, with a
base-size checkpoint of random weights, 640 × 480 JPEGs and one encoder thread. Rates are marginal,
from runs of two sizes, so that starting Ray and loading models do not count; whole runs are printed
too.

`memory` measures the unique memory of all processes while a job runs, with the demo checkpoint and
2,000 and 20,000 inputs.
"""

import argparse
import json
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import ray
from PIL import Image
from rich.console import Console
from rich.table import Table

from bench.base_checkpoint import build_base_checkpoint
from bench.ray_data_example import tag_on_ray_data
from serve_app.batch.options import BatchOptions
from serve_app.batch.storage import url_of
from serve_app.batch.tagging_job import run_job
from serve_app.config.service import ServiceConfig, parse_config
from serve_app.demo import settings as demo_settings
from serve_app.images.limits import ImageLimits
from serve_app.processes.private_ray import private_folder, private_ray

LABELS = [
    "a cat",
    "a dog",
    "a car",
    "a red bicycle",
    "the sea",
    "a mountain",
    "people",
    "food",
    "a house",
    "a tree",
]
CHUNK = 40
MEMORY_EVERY_S = 0.5


def write_images(folder: Path, count: int, different: int = 50) -> Path:
    """Write `different` images of smooth noise, 640 × 480, and links to them up to `count`."""
    folder.mkdir(parents=True)
    originals = []
    for at in range(min(count, different)):
        small = np.random.default_rng(at).integers(0, 256, (24, 32, 3), np.uint8)
        path = folder / f"{at:06d}.jpg"
        Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=88)
        originals.append(path)
    for at in range(len(originals), count):
        os.link(originals[at % len(originals)], folder / f"{at:06d}.jpg")
    return folder


def raw_seconds(config: ServiceConfig, source: Path, threads: int) -> float:
    """Return the time of the forward passes alone, on prepared images.

    The imports are here because the driver of the measurements must not load torch.
    """
    import torch

    from serve_app.hardware.planning import precision_here
    from serve_app.siglip.hub import load_checkpoint
    from serve_app.siglip.inputs import collate
    from serve_app.siglip.prepare import ImagePreparer
    from serve_app.towers.tower import ImageTower

    torch.set_num_threads(threads)
    checkpoint = load_checkpoint(config.siglip.model_source, None)
    tower = ImageTower(checkpoint, precision_here(config.siglip, checkpoint.family))
    preparer = ImagePreparer(checkpoint, ImageLimits(), config.siglip.max_num_patches)
    prepared = [preparer.prepare(path.read_bytes()) for path in sorted(source.iterdir())]
    size = config.siglip.fixed_batch_size or 1
    batches = [collate(prepared[start : start + size]) for start in range(0, len(prepared), size)]
    tower.encode(batches[0])
    started = time.perf_counter()
    for batch in batches:
        tower.encode(batch)
    return time.perf_counter() - started


def in_a_process(work: Callable[..., float], *arguments: object) -> float:
    """Run a measurement in a Ray worker of its own, so that it shares no threads and memory."""
    seconds: float = ray.get(ray.remote(num_cpus=1, max_calls=1)(work).remote(*arguments))
    return seconds


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def encoder(images: int, rounds: int) -> None:
    """Measure `encoder` and print it."""
    options = {"num_cpus": os.cpu_count()}
    with (
        TemporaryDirectory() as temporary,
        private_folder() as folder,
        private_ray(folder, **options),
    ):
        root = Path(temporary)
        checkpoint = build_base_checkpoint(root / "base")
        config = parse_config(
            {"labels": LABELS, "plugins": {"siglip": {"model": str(checkpoint), "batch_size": 8}}}
        )
        sizes = (images // 4, images)
        sources = [write_images(root / f"in{count}", count) for count in sizes]
        seconds: dict[str, list[list[float]]] = {"raw": [], "job": [], "ray data": []}
        for _ in range(rounds):
            out = root / "out"
            seconds["raw"].append(
                [in_a_process(raw_seconds, config, source, 1) for source in sources]
            )
            seconds["job"].append(
                [
                    timed(partial(run_job, config, _options(source, out / "job")))
                    for source in sources
                ]
            )
            examples = [
                partial(tag_on_ray_data, s, out / s.name, checkpoint, LABELS, _dtype(), 8)
                for s in sources
            ]
            seconds["ray data"].append([timed(example) for example in examples])
            shutil.rmtree(out)
        _print_rates(seconds, sizes)


def _options(source: Path, output: Path) -> BatchOptions:
    return BatchOptions(url_of(str(source)), url_of(str(output)), chunk_size=CHUNK)


def _dtype() -> str:
    """Return the dtype that `auto` stands for on this CPU."""
    from serve_app.hardware.detection import cpu_has_bfloat16

    return "bfloat16" if cpu_has_bfloat16() else "float32"


def _print_rates(seconds: dict[str, list[list[float]]], sizes: tuple[int, int]) -> None:
    rates = {
        name: [(sizes[1] - sizes[0]) / (large - small) for small, large in runs]
        for name, runs in seconds.items()
    }
    wholes = {name: [sizes[1] / large for _, large in runs] for name, runs in seconds.items()}
    raw = statistics.median(rates["raw"])
    table = Table("", "images/s", "of raw", f"whole run of {sizes[1]}", "rounds", box=None)
    for name, values in rates.items():
        middle = statistics.median(values)
        each = ", ".join(f"{value:.2f}" for value in values)
        table.add_row(
            name,
            f"{middle:.2f}",
            f"{middle / raw:.2f}",
            f"{statistics.median(wholes[name]):.2f}",
            each,
        )
    Console(width=120).print(table)
    print(
        json.dumps(
            {
                "dtype": _dtype(),
                "threads": 1,
                "sizes": sizes,
                "rates": rates,
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
    )


class MemoryWatch:
    """Samples the unique memory of this process and its descendants, in MiB."""

    def __init__(self) -> None:
        self.samples: list[float] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(MEMORY_EVERY_S):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.samples.append(total / 2**20)


def memory(small: int, large: int) -> None:
    """Measure `memory` and print it."""
    samples = (Path(demo_settings.__file__).parent / "samples").glob("*.jpg")
    options = {"num_cpus": os.cpu_count(), "object_store_memory": 2**30}
    rows = []
    with (
        TemporaryDirectory() as temporary,
        private_folder() as folder,
        private_ray(folder, **options),
    ):
        originals = sorted(samples)
        for count in (small, large):
            source = Path(temporary) / f"in{count}"
            source.mkdir()
            for at in range(count):
                (source / f"{at:06d}.jpg").symlink_to(originals[at % len(originals)])
            job = BatchOptions(url_of(str(source)), url_of(f"{temporary}/out"), chunk_size=500)
            with MemoryWatch() as watch:
                result = run_job(demo_settings.demo_config(), job)
            assert result.encoded == count
            rows.append(
                {
                    "inputs": count,
                    "images_per_second": round(result.per_second, 1),
                    "peak_mib": round(max(watch.samples)),
                }
            )
            rows[-1]["median_mib"] = round(statistics.median(watch.samples))
    table = Table("inputs", "images/s", "peak MiB", "median MiB", box=None)
    for row in rows:
        table.add_row(
            *(f"{row[key]:,}" for key in ("inputs", "images_per_second", "peak_mib", "median_mib"))
        )
    Console(width=120).print(table)
    print(json.dumps({"rows": rows, "at": datetime.now(UTC).isoformat(timespec="seconds")}))


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("encoder", "memory"))
    parser.add_argument("--images", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if given.what == "encoder":
        encoder(given.images or 400, given.rounds)
    else:
        memory((given.images or 20_000) // 10, given.images or 20_000)


if __name__ == "__main__":
    main()
