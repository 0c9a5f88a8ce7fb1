"""A batch job on 1, 2, 4 and 8 nodes: `python -m bench.batch_cluster [--rate R] [--store local|s3]
[--seconds S]`.

Several Ray nodes on this machine, each with a pretend GPU and two CPUs; the head has neither. All
of a job is real (listing, reading, decoding, blocks, scoring, writing, the proof) but for the
encoder: it takes the time that a GPU of `--rate` images a second takes, and gives random
embeddings. Beside each rate stands how fast the same pictures are read and prepared on this
machine's cores and nothing else: the bound, whatever the nodes.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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

from bench.batch_jobs import write_pictures
from serve_app.batch.encoders import EncoderPool, EncoderScale
from serve_app.batch.inputs import find_inputs
from serve_app.batch.job import Job
from serve_app.batch.options import BatchOptions
from serve_app.batch.pipeline import Pipeline
from serve_app.batch.rows import Written
from serve_app.batch.snapshot import Chunk, Snapshot
from serve_app.batch.storage import Storage, url_of
from serve_app.batch.tagging_job import flow_of, load_remotely, told_of, writing_of
from serve_app.batch.workers import EncodedBlock, Model, PreparedBlock, Reading, prepare_block
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
"""Part of a run's inputs after which its rate is taken: before, workers start and the first blocks
are prepared."""
BUCKET = "pictures"
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

    def encode(self, block: PreparedBlock) -> EncodedBlock:
        """Wait until the GPU would be through."""
        assert sum(len(batch) for batch in block.batches) == len(block.rows), "pixels have arrived"
        started = max(
            time.perf_counter(), self._free_s
        )  # a GPU is not late because this process was woken late
        self._free_s = started + len(block.rows) / self.rate
        time.sleep(max(0.0, self._free_s - time.perf_counter()))
        embeds = self._random.normal(size=(len(block.rows), self._width)).astype(np.float32)
        embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
        return EncodedBlock(embeds, tuple(sorted(block.rows)))


@contextmanager
def nodes(count: int) -> Iterator[None]:
    """Run a head and so many nodes with a pretend GPU each, and connect to them."""
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
    """An engine that notes when each chunk was done."""

    def __init__(self, engine: Pipeline) -> None:
        self._engine = engine
        self.times: list[tuple[float, int]] = []

    def run(
        self,
        chunks: Iterator[tuple[Chunk, pa.Table]],
        done: Callable[[Written], None],
        tick: Callable[[int], None],
    ) -> None:
        """See `Engine`."""

        def noted(written: Written) -> None:
            self.times.append((time.perf_counter(), written.inputs))
            done(written)

        self._engine.run(chunks, noted, tick)

    def end(self) -> None:
        """End the encoders."""
        self._engine.end()

    @property
    def rate(self) -> float:
        """Inputs a second after the start and before the last chunks, when encoders are idle by
        turns: chunks come in bursts, so a fit.
        """
        kept = slice(int(len(self.times) * STEADY_FROM), int(len(self.times) * 0.95))
        seconds, inputs = np.array(self.times).T
        return float(np.polyfit(seconds[kept], np.cumsum(inputs)[kept], 1)[0])


def run_on(count: int, rate: float, options: BatchOptions) -> float:
    """Return the images a second of a job on so many nodes."""
    config = demo_config()
    plan = plan_service(config, parse_hardware("cpu2"))
    with nodes(count):
        scoring = load_remotely(config, TagOptions())
        width = scoring.scored.bank.text_embeds.shape[1]
        plugin = config.siglip
        model = Model(
            plugin.model_source,
            config.revision,
            plan.precision,
            BATCH,
            plugin.max_num_patches,
            width,
        )
        limits = config.image_limits()
        planned = DeploymentPlan(1.0, 1.0, count, count, rate)
        nbytes = ImagePreparer(
            load_checkpoint(model.source, model.revision), limits, model.max_num_patches
        ).max_nbytes
        writing = writing_of(options, f"{count}-nodes-{rate:g}")
        engines: list[Steady] = []

        def start(snapshot: Snapshot) -> Steady:
            reading = Reading(
                model,
                limits,
                2**25,
                "standard",
                snapshot.kind,
                snapshot.image_column,
                options.storage,
            )
            pool = EncoderPool(
                model,
                EncoderScale(1.0, 1.0, count, count),
                type("GpuEncoder", (PretendEncoder,), {"rate": rate}),
            )
            engines.append(
                Steady(
                    Pipeline(
                        reading, writing, scoring, pool, flow_of(options, planned, BATCH, nbytes)
                    )
                )
            )
            return engines[0]

        result = Job(options, writing, told_of(scoring, {}), start).run()
        assert not result.errors
        return engines[0].rate


def bound(options: BatchOptions) -> float:
    """Return the images a second that are read and prepared on this machine's cores, and nothing
    else done.
    """
    config = demo_config()
    model = Model(
        config.siglip.model_source,
        None,
        Precision(),
        BATCH,
        config.siglip.max_num_patches,
        1,
    )
    reading = Reading(
        model, config.image_limits(), 2**25, "standard", "object", None, options.storage
    )
    rows = pa.concat_tables(find_inputs(options).tables).slice(0, 20 * CHUNK)
    with private_folder() as folder, private_ray(folder, num_cpus=os.cpu_count()):
        prepare = ray.remote(prepare_block).options(num_cpus=1, num_returns=2)
        ray.get(
            [
                prepare.remote(reading, rows.slice(at * CHUNK, CHUNK))[1]
                for at in range(os.cpu_count() or 1)
            ]
        )  # imports
        started = time.perf_counter()
        waiting = [
            prepare.remote(reading, rows.slice(start, CHUNK))[1]
            for start in range(0, len(rows), CHUNK)
        ]
        ray.get(waiting)
        return len(rows) / (time.perf_counter() - started)


@contextmanager
def endpoint(source: Path) -> Iterator[tuple[str, Storage]]:
    """Run an S3 endpoint in a process of its own that holds the pictures of a folder."""
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
        source = write_pictures(Path(folder) / "in", count)
        at, storage = (
            stack.enter_context(endpoint(source)) if store == "s3" else (url_of(folder), Storage())
        )
        whole = BatchOptions(f"{at}/in", f"{at}/out", storage, chunk_size=CHUNK)
        most = bound(whole)
        rows = []
        for number in NODES:
            some = replace(whole, limit=count * number // max(NODES) // CHUNK * CHUNK)
            got = run_on(number, rate, some)
            ideal = min(number * rate, most)
            rows.append(
                {
                    "nodes": number,
                    "images_per_second": got,
                    "linear": got / (number * rate),
                    "of_possible": got / ideal,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
        print(f"read and prepared alone: {most:.0f} a second")
        return [row | {"bound": most} for row in rows]


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
