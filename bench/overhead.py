"""CPU time of the service beyond decoding and model: `python -m bench.overhead`.

The real graph runs around an encoder that takes a GPU's time (`bench/stand_in.py`). For every size,
with one image a request and with sixteen, the table has the CPU milliseconds an image of every
process, and the images per second that one encoder process could absorb. Decoding is measured apart
on the same images, in as many processes as there are cores, and subtracted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import psutil
import yaml

from bench.base_checkpoint import build_checkpoint
from bench.demo_inputs import draw_images, write_config
from bench.stand_in import Pace, StandInGraph, graph_with_stand_in
from serve_app.config.service import load_config
from serve_app.config.serving import BY_REFERENCE_BYTES
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.prepare import ImagePreparer

PORT = 8125
IMAGES_PER_REQUEST = (1, 16)
IMAGES_IN_FLIGHT = 64
MIN_SHARE = 0.25
"""A GPU takes at least this share of a full batch's time for a small batch (assumed)."""
GROUPS = {
    "Preprocessor": "Preprocessor",
    "ImageEncoder": "ImageEncoder",
    "Postprocessor": "Postprocessor",
    "haproxy": "HAProxy",
    "raylet": "raylet",
}
"""Part of a process's command line, and its column; everything else is `other`."""


@dataclass(frozen=True)
class Size:
    """A model size and the pace of a GPU at it.

    Attributes:
        pixels: Side of an image.
        width: Width of the tower and of its embeddings.
        pace: A full batch and its duration.
    """

    pixels: int
    width: int
    pace: Pace


SIZES = (
    Size(64, 192, Pace(64 / 10_000, 64, MIN_SHARE)),
    # siglip2-base-patch16-224 and siglip2-so400m-patch14-384 on an H100
    Size(224, 768, Pace(64 / 5_000, 64, MIN_SHARE)),
    Size(384, 1152, Pace(16 / 590, 16, MIN_SHARE)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[s.pixels for s in SIZES])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument(
        "--by-reference-bytes",
        type=int,
        default=BY_REFERENCE_BYTES,
        help="serving.by_reference_bytes; a large number sends every micro-batch by value",
    )
    args = parser.parse_args()
    columns = ["px", "images a request", "images/s", "mean batch", "decode apart", *_columns()]
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for size in SIZES:
        if size.pixels in args.sizes:
            with tempfile.TemporaryDirectory(prefix="siglip-overhead-") as folder:
                measure_size(size, Path(folder), args.seconds, args.by_reference_bytes)


def measure_size(size: Size, folder: Path, seconds: float, by_reference_bytes: int) -> None:
    """Print the rows of one size."""
    tower = {"hidden_size": size.width, "intermediate_size": size.width}
    tower |= {"num_hidden_layers": 1, "num_attention_heads": size.width // 64}
    model = build_checkpoint(folder / "model", size.pixels, tower)
    config = write_config(folder / "config.yaml", str(model), 1, size.pace.batch_size, PORT)
    settings = yaml.safe_load(config.read_text())
    settings["serving"]["by_reference_bytes"] = by_reference_bytes
    config.write_text(yaml.safe_dump(settings))
    images = draw_images(folder)
    decode_ms = _decode_ms(config, images)
    with graph_with_stand_in(config, size.pace) as graph:
        for per_request in IMAGES_PER_REQUEST:
            _load(images, per_request, min(seconds, 5.0))  # warm up
            _measure(size, graph, images, per_request, seconds, decode_ms)


def _measure(
    size: Size,
    graph: StandInGraph,
    images: Sequence[str],
    per_request: int,
    seconds: float,
    decode_ms: float,
) -> None:
    counted = graph.counts()
    before = _cpu_seconds(graph.pid)
    started_s = time.perf_counter()
    _load(images, per_request, seconds)
    elapsed_s = time.perf_counter() - started_s
    after = _cpu_seconds(graph.pid)
    counts = graph.counts()
    count = counts.items - counted.items
    mean_batch = count / (counts.batches - counted.batches)

    cpu_ms = {name: (after[name] - before.get(name, 0.0)) * 1000 / count for name in after}
    total_ms = sum(cpu_ms.values())
    cells = [
        str(size.pixels),
        str(per_request),
        f"{count / elapsed_s:.0f}",
        f"{mean_batch:.1f}",
        f"{decode_ms:.2f}",
        *(f"{cpu_ms.get(name, 0.0):.2f}" for name in [*GROUPS.values(), "other"]),
        f"{total_ms - decode_ms:.2f}",
        f"{1000 / cpu_ms['ImageEncoder']:,.0f}",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def _columns() -> list[str]:
    return [*GROUPS.values(), "other", "**beyond decoding**", "images/s an encoder process"]


def _decode_ms(config: Path, images: Sequence[str]) -> float:
    """Return the median CPU milliseconds of preparing one of the images, with every core busy."""
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as processes:
        times = list(processes.map(_decode_alone_ms, [config] * cores, [images] * cores))
    return statistics.median(times)


def _decode_alone_ms(config_path: Path, images: Sequence[str]) -> float:
    config = load_config(config_path)
    checkpoint = load_checkpoint(config.siglip.model_source, config.revision)
    preparer = ImagePreparer(checkpoint, config.image_limits(), config.siglip.max_num_patches)
    contents = [Path(path).read_bytes() for path in images]
    times = []
    for _ in range(20):
        started_s = time.thread_time()
        for content in contents:
            preparer.prepare(content)
        times.append((time.thread_time() - started_s) * 1000 / len(contents))
    return statistics.median(times)


def _cpu_seconds(pid: int) -> dict[str, float]:
    """Return the CPU seconds of a process and its descendants, by column."""
    seconds: defaultdict[str, float] = defaultdict(float)
    parent = psutil.Process(pid)
    for process in [parent, *parent.children(recursive=True)]:
        try:
            command = " ".join(process.cmdline()) or process.name()
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        column = next((name for part, name in GROUPS.items() if part in command), "other")
        seconds[column] += times.user + times.system
    return dict(seconds)


def _load(images: Sequence[str], per_request: int, seconds: float) -> None:
    command = [sys.executable, "-m", "bench.load", f"http://127.0.0.1:{PORT}/v1/tag", *images]
    command += ["--clients", str(max(1, IMAGES_IN_FLIGHT // per_request))]
    command += ["--seconds", str(seconds), "--images-per-request", str(per_request)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    failed = json.loads(ran.stdout)["failed"]
    if failed:
        print(f"{failed} requests failed: {ran.stdout}", file=sys.stderr)


if __name__ == "__main__":
    main()
