"""Measures the work alone, in one process: decoding, the encoder, and both on every core.

`python -m bench.floor CONFIG PICTURE...` prints one JSON object.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from serve_app.config.service import load_config
from serve_app.pipeline.local_tagger import LocalTagger
from serve_app.siglip.inputs import collate


def median_s(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of some runs, without the first one."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tagger = LocalTagger(load_config(given.config))
    data = [path.read_bytes() for path in given.pictures]
    images = [tagger.preparer.prepare(data[i % len(data)]) for i in range(tagger.batch_size)]
    batch = collate(images)
    all_s = median_s(lambda: [tagger.preparer.prepare(one) for one in data], given.repeats)
    decode_s = all_s / len(data)
    model_s = median_s(lambda: tagger._images.encode(batch), given.repeats) / len(batch)
    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    raw_s = median_s(lambda: tagger._images.encode(batch), given.repeats) / len(batch)
    measured = {
        "decode_ms": decode_s * 1000,
        "model_ms": model_s * 1000,
        "floor_per_second": cores / (decode_s + model_s),
        "raw_encoder_per_second": 1 / raw_s,
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
