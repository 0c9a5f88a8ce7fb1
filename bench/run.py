"""Compares the service over HTTP with the work alone and with alternatives: `make bench`.

Every server does the same job on the same images for the same clients, one server at a time, in
rounds. Medians of the rounds and ratios are printed as a table for `bench/LOG.md`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.base_checkpoint import build_base_checkpoint
from bench.batching import BATCH_S, FAST_BATCH_S, SLOW_BATCH_S, batching_trial
from bench.demo_inputs import LABELS, draw_images, write_config
from bench.servers import ROOT, litserve_python, running
from serve_app.config.plugin import DEMO_CHECKPOINT

PORT = 8123
URL = f"http://127.0.0.1:{PORT}"
COMMAND = str(Path(sys.executable).with_name("siglip-serve"))
CLIENTS = 32


def load(
    images: list[str], seconds: float, clients: int, *options: str, path: str = "/v1/tag"
) -> dict[str, Any]:
    """Run the load generator in its own process and return what it measured."""
    command = [
        sys.executable,
        "-m",
        "bench.load",
        URL + path,
        *images,
        "--clients",
        str(clients),
        "--seconds",
        str(seconds),
        *options,
    ]
    ran = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return dict(json.loads(ran.stdout))


def floor(config: Path, images: list[str], repeats: int) -> dict[str, float]:
    """Measure the work alone, without a server."""
    command = [
        sys.executable,
        "-m",
        "bench.floor",
        str(config),
        *images,
        "--repeats",
        str(repeats),
    ]
    ran = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def measure(
    command: list[str], ready: str, images: list[str], seconds: float, clients: int, *options: str
) -> dict[str, Any]:
    """Start a server, warm it up, and load it."""
    with running(command, URL + ready):
        load(images, min(3.0, seconds), clients, *options)
        return load(images, seconds, clients, *options)


def litserve(config: Path, kind: str, images: list[str], seconds: float) -> dict[str, Any]:
    """Measure LitServe with batching on."""
    command = [litserve_python(), "-m", "bench.litserve_app", str(config), str(PORT), kind]
    return measure(command, "/health", images, seconds, CLIENTS, "--multipart", "request")


def median(runs: list[dict[str, Any]], key: str) -> float:
    """Return the median of one measurement over several runs."""
    return statistics.median(float(run[key]) for run in runs)


def demo_benchmark(folder: Path, rounds: int, seconds: float) -> None:
    """Measure the demo checkpoint with 640 × 480 JPEGs, one per request, and 32 clients."""
    images = draw_images(folder)
    config = write_config(folder / "demo.yaml", "demo", 1, 16, PORT)
    servers: dict[str, Callable[[], dict[str, Any]]] = {
        "service": lambda: measure(
            [COMMAND, "serve", str(config)], "/readyz", images, seconds, CLIENTS
        ),
        "LitServe, transformers as usual": lambda: litserve(config, "usual", images, seconds),
        "LitServe, our functions": lambda: litserve(config, "ours", images, seconds),
        "plain pipeline app": lambda: measure(
            [sys.executable, "-m", "bench.plain_app", str(DEMO_CHECKPOINT), str(LABELS), str(PORT)],
            "/health",
            images,
            seconds,
            CLIENTS,
        ),
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
    floors: list[dict[str, Any]] = []
    for number in range(rounds):
        floors.append(floor(config, images, 20))
        for name, run in servers.items():
            runs[name].append(run())
            print(
                f"round {number + 1} {name}: {runs[name][-1]['per_second']:.0f}/s",
                file=sys.stderr,
                flush=True,
            )
    report("demo checkpoint, 640x480 JPEG, 32 clients", runs, floors)


def base_benchmark(folder: Path, rounds: int, seconds: float) -> None:
    """Measure a base-size checkpoint with random weights, where the model dominates."""
    model = str(build_base_checkpoint(folder / "base"))
    images = draw_images(folder)
    config = write_config(folder / "base.yaml", model, 2, 8, PORT)
    runs: dict[str, list[dict[str, Any]]] = {"service": []}
    floors: list[dict[str, Any]] = []
    for number in range(rounds):
        floors.append(floor(config, images, 3))
        runs["service"].append(
            measure([COMMAND, "serve", str(config)], "/readyz", images, seconds, 16)
        )
        print(
            f"round {number + 1} service: {runs['service'][-1]['per_second']:.2f}/s",
            file=sys.stderr,
            flush=True,
        )
    report(
        "base-size checkpoint (siglip-base-patch16-224, random weights, float32), 16 clients",
        runs,
        floors,
    )


def report(title: str, runs: dict[str, list[dict[str, Any]]], floors: list[dict[str, Any]]) -> None:
    """Print a Markdown table of medians and ratios."""
    floor_rate = median(floors, "floor_per_second")
    raw_rate = median(floors, "raw_encoder_per_second")
    ours = median(runs["service"], "per_second")
    print(f"\n### {title}\n")
    print(
        f"decode {median(floors, 'decode_ms'):.2f} ms, "
        f"model {median(floors, 'model_ms'):.2f} ms an image on one core; "
        f"floor (all cores, decode and model) {floor_rate:.1f}/s, "
        f"raw encoder alone {raw_rate:.1f}/s\n"
    )
    columns = ["server", "images/s", "p50 ms", "p99 ms", "failed"]
    columns += ["of the floor", "of the raw encoder", "service is"]
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for name, results in runs.items():
        rate = median(results, "per_second")
        cells = [
            name,
            f"{rate:.1f}",
            f"{median(results, 'p50_ms'):.0f}",
            f"{median(results, 'p99_ms'):.0f}",
            failures(results),
            f"{rate / floor_rate:.2f}",
            f"{rate / raw_rate:.2f}",
            f"{ours / rate:.2f}x",
        ]
        print(f"| {' | '.join(cells)} |")


def failures(results: list[dict[str, Any]]) -> str:
    """Return the number of failed requests, and those of each status."""
    statuses = sum((Counter(run["statuses"]) for run in results), Counter())
    del statuses["200"]
    failed = sum(int(run["failed"]) for run in results)
    return " ".join([str(failed), *(f"({name}: {count})" for name, count in statuses.items())])


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare the service with the work alone and with alternatives."
    )
    parser.add_argument(
        "what",
        nargs="*",
        default=["demo", "base", "batching"],
        help="demo, base, batching; default: all",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=10, help="seconds of load for each server and round"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="siglip-bench-") as folder:
        if "demo" in given.what:
            demo_benchmark(Path(folder), given.rounds, given.seconds)
        if "base" in given.what:
            base_benchmark(Path(folder), given.rounds, max(30.0, given.seconds))
        if "batching" in given.what:
            for batch_s in (FAST_BATCH_S, BATCH_S, SLOW_BATCH_S):
                batching_trial(given.seconds, batch_s)


if __name__ == "__main__":
    main()
