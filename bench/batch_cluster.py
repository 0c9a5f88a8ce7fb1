"""Measures a batch job on 1, 2, 4 and 8 nodes.

`python -m bench.batch_cluster [--rate R] [--store local|s3] [--seconds S]` runs several Ray nodes
on this machine, each with a pretend GPU and two CPUs; the head has neither. Everything in the job
is real except for the encoder, which takes the time of a GPU with `--rate` images per second and
gives random embeddings. Each rate is compared with the rate at which the cores of this machine read
and prepare the same images and do nothing else, which is the limit for any number of nodes.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import boto3  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa
import ray
from botocore.exceptions import EndpointConnectionError  # type: ignore[import-untyped]
from ray.cluster_utils import Cluster
from rich.console import Console
from rich.table import Table

from bench.batch_jobs import write_images
from serve_app.batch.blocks import EncodedBlock, PreparedBlock
from serve_app.batch.encoder_pool import EncoderPool
from serve_app.batch.encoding_engine import EncodingEngine
from serve_app.batch.engine import ChunkInputs, Watcher
from serve_app.batch.inputs import find_inputs
from serve_app.batch.job import Job
from serve_app.batch.options import BatchOptions
from serve_app.batch.output_files import Writing, Written
from serve_app.batch.preparing import Model, Reading, prepare_block
from serve_app.batch.rows import ImageFacts
from serve_app.batch.snapshot import Snapshot
from serve_app.batch.storage import Storage, url_of
from serve_app.batch.tagging_job import flow_of, load_remotely, recorded_of
from serve_app.config.service import ServiceConfig
from serve_app.demo.settings import demo_config
from serve_app.hardware.detection import parse_hardware
from serve_app.hardware.plan import DeploymentPlan
from serve_app.hardware.planning import plan_service
from serve_app.processes.private_ray import private_environment, private_folder, private_ray
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.precision import Precision
from serve_app.siglip.prepare import ImagePreparer
from serve_app.tagging.options import TagOptions

NODES = (1, 2, 4, 8)
CHUNK = 64
BATCH = 32
STEADY_FROM = 0.3
"""Part of a run's inputs after which its rate is measured; before that, workers start."""
BUCKET = "images"
KEY = "test"


class PretendEncoder:
    """Takes the time that a GPU takes for a block, and gives random unit embeddings."""

    rate = 0.0

    def __init__(self, model: Model, num_threads: int, gpu_share: float) -> None:
        self._width = model.width
        self._random = np.random.default_rng(0)
        self._free_s = 0.0

    def ready(self) -> None:
        """Nothing is loaded."""

    def encode(self, block: PreparedBlock, images: Sequence[ImageFacts]) -> EncodedBlock:
        """Wait until the GPU would have finished."""
        assert sum(len(batch) for batch in block.batches) == len(block), "pixels have arrived"
        # a GPU does not start later because this process wakes up late
        started = max(time.perf_counter(), self._free_s)
        self._free_s = started + len(block) / self.rate
        time.sleep(max(0.0, self._free_s - time.perf_counter()))
        embeds = self._random.normal(size=(len(block), self._width)).astype(np.float32)
        embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
        return EncodedBlock(tuple(images), block.views, embeds)


@contextmanager
def nodes(count: int) -> Iterator[None]:
    """Run a head and `count` nodes with a pretend GPU each, and connect to them."""
    head = {"num_cpus": 0, "object_store_memory": 2**28, "include_dashboard": False}
    with private_folder() as folder, private_environment(folder):
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(count):
                cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=2**28)
            ray.init(address=cluster.address, log_to_driver=False)
            yield
        finally:
            ray.shutdown()
            cluster.shutdown()


class Steady:
    """An engine that records when each chunk was done."""

    def __init__(self, engine: EncodingEngine) -> None:
        self._engine = engine
        self.times: list[tuple[float, int]] = []

    def run(self, chunks: Iterator[ChunkInputs], watcher: Watcher) -> None:
        """Run every chunk; see `Engine`."""
        self._engine.run(chunks, _Recorder(self.times, watcher))

    def end(self) -> None:
        """Stop the encoders."""
        self._engine.end()

    @property
    def rate(self) -> float:
        """Inputs per second, without the start and the last chunks, when some encoders are idle.

        It is a fit, because chunks end in bursts.
        """
        kept = slice(int(len(self.times) * STEADY_FROM), int(len(self.times) * 0.95))
        seconds, inputs = np.array(self.times).T
        return float(np.polyfit(seconds[kept], np.cumsum(inputs)[kept], 1)[0])


class _Recorder:
    """Records when each chunk was done, and passes everything on."""

    def __init__(self, times: list[tuple[float, int]], watcher: Watcher) -> None:
        self._times = times
        self._watcher = watcher

    def chunk_done(self, written: Written) -> None:
        self._times.append((time.perf_counter(), written.inputs))
        self._watcher.chunk_done(written)

    def tick(self, encoders: int) -> None:
        self._watcher.tick(encoders)


def model_of(config: ServiceConfig, precision: Precision, width: int) -> Model:
    """Return the model of a job."""
    plugin = config.siglip
    return Model(
        plugin.model_source,
        config.revision,
        precision,
        BATCH,
        plugin.max_num_patches,
        width,
    )


def run_on(count: int, rate: float, options: BatchOptions) -> float:
    """Return the images per second of a job on `count` nodes."""
    config = demo_config()
    plan = plan_service(config, parse_hardware("cpu2"))
    with nodes(count):
        scoring = load_remotely(config, TagOptions())
        model = model_of(config, plan.precision, scoring.width)
        limits = config.image_limits()
        planned = DeploymentPlan(1.0, 1.0, count, count, rate)
        checkpoint = load_checkpoint(model.source, model.revision)
        nbytes = ImagePreparer(checkpoint, limits, model.max_num_patches).max_nbytes
        flow = flow_of(options, planned, BATCH, nbytes)
        writing = Writing.into(f"{options.output}/{count}-nodes-{rate:g}", options)
        encoder = type("GpuEncoder", (PretendEncoder,), {"rate": rate})
        engines: list[Steady] = []

        def start(snapshot: Snapshot) -> Steady:
            kind = snapshot.kind
            reading = Reading(model, limits, 2**25, "standard", kind, None, options.storage)
            pool = EncoderPool(model, planned, encoder)
            engines.append(Steady(EncodingEngine(reading, writing, scoring, pool, flow)))
            return engines[0]

        result = Job(options, writing, recorded_of(scoring, {}), start).run()
        assert not result.errors
        return engines[0].rate


def bound(options: BatchOptions) -> float:
    """Return the images per second that the cores of this machine read and prepare."""
    config = demo_config()
    model = model_of(config, Precision(), 1)
    reading = Reading(
        model, config.image_limits(), 2**25, "standard", "object", None, options.storage
    )
    rows = pa.concat_tables(find_inputs(options).tables).slice(0, 20 * CHUNK)
    with private_folder() as folder, private_ray(folder, num_cpus=os.cpu_count()):
        prepare = ray.remote(prepare_block).options(num_cpus=1, num_returns=2)
        starts = [i * CHUNK for i in range(os.cpu_count() or 1)]
        # the first task of each worker imports everything
        ray.get([prepare.remote(reading, rows.slice(start, CHUNK))[1] for start in starts])
        started = time.perf_counter()
        waiting = [
            prepare.remote(reading, rows.slice(start, CHUNK))[1]
            for start in range(0, len(rows), CHUNK)
        ]
        ray.get(waiting)
        return len(rows) / (time.perf_counter() - started)


@contextmanager
def endpoint(source: Path) -> Iterator[tuple[str, Storage]]:
    """Run an S3 endpoint with the images of a folder, in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        pairs = {
            "endpoint": f"http://127.0.0.1:{port}",
            "access_key_id": KEY,
            "secret_access_key": KEY,
            "region": "us-east-1",
        }
        s3 = boto3.client(
            "s3",
            endpoint_url=pairs["endpoint"],
            aws_access_key_id=KEY,
            aws_secret_access_key=KEY,
            region_name=pairs["region"],
        )
        for _ in range(60):
            try:
                s3.create_bucket(Bucket=BUCKET)
                break
            except EndpointConnectionError:
                time.sleep(0.5)
        for path in sorted(source.iterdir()):
            s3.put_object(Bucket=BUCKET, Key=f"in/{path.name}", Body=path.read_bytes())
        yield f"s3://{BUCKET}", Storage(tuple(pairs.items()))
    finally:
        server.terminate()
        server.wait()


def measure(store: str, rate: float, seconds: float) -> list[dict[str, float]]:
    """Return a row for each number of nodes."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        count = int(max(NODES) * rate * seconds) // CHUNK * CHUNK
        source = write_images(Path(folder) / "in", count)
        root = url_of(folder)
        storage = Storage()
        if store == "s3":
            root, storage = stack.enter_context(endpoint(source))
        whole = BatchOptions(f"{root}/in", f"{root}/out", storage, chunk_size=CHUNK)
        max_rate = bound(whole)
        rows = []
        for number in NODES:
            some = replace(whole, limit=count * number // max(NODES) // CHUNK * CHUNK)
            got = run_on(number, rate, some)
            ideal = min(number * rate, max_rate)
            rows.append(
                {
                    "nodes": number,
                    "images_per_second": got,
                    "linear": got / (number * rate),
                    "of_possible": got / ideal,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
        print(f"read and prepared alone: {max_rate:.0f} a second")
        return [row | {"bound": max_rate} for row in rows]


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rate", type=float, default=15.0, help="images a second of one pretend GPU"
    )
    parser.add_argument("--store", choices=("local", "s3"), default="local")
    parser.add_argument("--seconds", type=float, default=120.0, help="of encoding in each run")
    given = parser.parse_args()
    rows = measure(given.store, given.rate, given.seconds)
    table = Table("nodes", "images/s", "of linear", "of what is possible", box=None)
    for row in rows:
        table.add_row(
            f"{row['nodes']}",
            f"{row['images_per_second']:.1f}",
            f"{row['linear']:.2f}",
            f"{row['of_possible']:.2f}",
        )
    Console(width=120).print(table)
    print(
        json.dumps(
            {
                "store": given.store,
                "rate": given.rate,
                "rows": rows,
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
    )


if __name__ == "__main__":
    main()
