"""The benchmark: the service over HTTP, beside the work itself and beside what one would otherwise
use. `make bench`.

Every server does the same job on the same pictures for the same clients, one server at a time, in
rounds; medians of the rounds and ratios are printed as a table for `bench/LOG.md`.
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

import yaml

from bench.base_checkpoint import build_base_checkpoint
from bench.servers import ROOT, litserve_python, running
from serve_app.config.plugin import DEMO_CHECKPOINT
from serve_app.demo import scenes

PORT = 8123
URL = f"http://127.0.0.1:{PORT}"
COMMAND = str(Path(sys.executable).with_name("siglip-serve"))
LABELS = ROOT / "configs" / "vocabularies" / "shapes.yaml"
PICTURE_COUNT = 32
PICTURE_PX = (640, 480)
CLIENTS = 32


def draw_pictures(folder: Path) -> list[str]:
    """Write JPEGs of drawn scenes and return their paths."""
    paths = []
    for number, scene in enumerate(scenes.sample_scenes(17, PICTURE_COUNT, scenes.SEEN)):
        path = folder / f"{number}.jpg"
        scenes.draw(scene, *PICTURE_PX).save(path, quality=90)
        paths.append(str(path))
    return paths


def write_config(folder: Path, name: str, model: str, encoder_cpus: float, batch_size: int) -> Path:
    """Write the service's configuration for this machine."""
    config = {
        "labels": str(LABELS),
        "plugins": {
            "siglip": {
                "model": model,
                "batch_size": batch_size,
                "confidence_threshold": 0.5,
                "dtype": "float32",
            }
        },
        "serving": {
            "port": PORT,
            "request_timeout_s": 300,
            "preprocessor": {"num_cpus": 0.5},
            "image_encoder": {"num_cpus": encoder_cpus},
            "text_encoder": {"num_cpus": 0.25},
            "postprocessor": {"num_cpus": 0.25},
        },
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def load(
    pictures: list[str], seconds: float, clients: int, *options: str, path: str = "/v1/tag"
) -> dict[str, Any]:
    """Run the load generator in its own process and return what it measured."""
    command = [
        sys.executable,
        "-m",
        "bench.load",
        URL + path,
        *pictures,
        "--clients",
        str(clients),
        "--seconds",
        str(seconds),
        *options,
    ]
    ran = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return dict(json.loads(ran.stdout))


def floor(config: Path, pictures: list[str], repeats: int) -> dict[str, float]:
    """Measure the work itself."""
    command = [
        sys.executable,
        "-m",
        "bench.floor",
        str(config),
        *pictures,
        "--repeats",
        str(repeats),
    ]
    ran = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def measure(
    command: list[str], ready: str, pictures: list[str], seconds: float, clients: int, *options: str
) -> dict[str, Any]:
    """Start a server, warm it up, and load it."""
    with running(command, URL + ready):
        load(pictures, min(3.0, seconds), clients, *options)
        return load(pictures, seconds, clients, *options)


def litserve(config: Path, kind: str, pictures: list[str], seconds: float) -> dict[str, Any]:
    """Measure LitServe with batching on."""
    command = [litserve_python(), "-m", "bench.litserve_app", str(config), str(PORT), kind]
    return measure(command, "/health", pictures, seconds, CLIENTS, "--multipart", "request")


def median(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.median(float(run[key]) for run in runs)


def demo_benchmark(folder: Path, rounds: int, seconds: float) -> None:
    """Demo checkpoint, one 640×480 JPEG a request, 32 clients."""
    pictures = draw_pictures(folder)
    config = write_config(folder, "demo", "demo", 1, 16)
    servers: dict[str, Callable[[], dict[str, Any]]] = {
        "service": lambda: measure(
            [COMMAND, "serve", str(config)], "/readyz", pictures, seconds, CLIENTS
        ),
        "LitServe, transformers as usual": lambda: litserve(config, "usual", pictures, seconds),
        "LitServe, our functions": lambda: litserve(config, "ours", pictures, seconds),
        "plain pipeline app": lambda: measure(
            [sys.executable, "-m", "bench.plain_app", str(DEMO_CHECKPOINT), str(LABELS), str(PORT)],
            "/health",
            pictures,
            seconds,
            CLIENTS,
        ),
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
    floors: list[dict[str, Any]] = []
    for number in range(rounds):
        floors.append(floor(config, pictures, 20))
        for name, run in servers.items():
            runs[name].append(run())
            print(
                f"round {number + 1} {name}: {runs[name][-1]['per_second']:.0f}/s",
                file=sys.stderr,
                flush=True,
            )
    report("demo checkpoint, 640x480 JPEG, 32 clients", runs, floors)


def base_benchmark(folder: Path, rounds: int, seconds: float) -> None:
    """A base-size checkpoint with random weights: the model dominates."""
    model = str(build_base_checkpoint(folder / "base"))
    pictures = draw_pictures(folder)
    config = write_config(folder, "base", model, 2, 8)
    runs: dict[str, list[dict[str, Any]]] = {"service": []}
    floors: list[dict[str, Any]] = []
    for number in range(rounds):
        floors.append(floor(config, pictures, 3))
        runs["service"].append(
            measure([COMMAND, "serve", str(config)], "/readyz", pictures, seconds, 16)
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
        f"decode {median(floors, 'decode_ms'):.2f} ms, model {median(floors, 'model_ms'):.2f} ms an image on one core; ",
        end="",
    )
    print(
        f"floor (all cores, decode and model) {floor_rate:.1f}/s, raw encoder alone {raw_rate:.1f}/s\n"
    )
    print(
        "| server | images/s | p50 ms | p99 ms | failed | of the floor | of the raw encoder | service is |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, results in runs.items():
        rate = median(results, "per_second")
        failed = sum(int(r["failed"]) for r in results)
        others = sum((Counter(run["statuses"]) for run in results), Counter())
        del others["200"]
        shown = " ".join(
            [str(failed), *(f"({status}: {count})" for status, count in others.items())]
        )
        print(
            f"| {name} | {rate:.1f} | {median(results, 'p50_ms'):.0f} | {median(results, 'p99_ms'):.0f} | {shown} "
            f"| {rate / floor_rate:.2f} | {rate / raw_rate:.2f} | {ours / rate:.2f}x |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure the service beside what one would otherwise use."
    )
    parser.add_argument(
        "what",
        nargs="*",
        default=["demo", "base", "batching"],
        help="demo, base, batching; all if left out",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=10, help="of load, for each server and round"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="siglip-bench-") as folder:
        if "demo" in given.what:
            demo_benchmark(Path(folder), given.rounds, given.seconds)
        if "base" in given.what:
            base_benchmark(Path(folder), given.rounds, max(30.0, given.seconds))
        if "batching" in given.what:
            from bench.batching import BATCH_S, SLOW_BATCH_S, batching_trial

            for batch_s in (BATCH_S, SLOW_BATCH_S):
                batching_trial(given.seconds, batch_s)


if __name__ == "__main__":
    main()
