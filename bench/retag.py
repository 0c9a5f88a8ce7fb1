"""Measures tagging stored embeddings again: `python -m bench.retag [--rows 100000] [--runs 3]`.

The stored output has random unit embeddings (width 768, a base-size checkpoint with random
weights). It is tagged with the 2,113 tags of `general.yaml`. Their text embeddings are random too
and come from a stored bank, as in every job but the first. The job is compared with the matrix
product alone, on all cores.
"""

import argparse
import json
import os
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from rich.console import Console

from bench.base_checkpoint import build_base_checkpoint
from serve_app.batch.input_tables import own_table
from serve_app.batch.options import BatchOptions
from serve_app.batch.output_files import Writing, write_rows
from serve_app.batch.retag import run_retag_job
from serve_app.batch.rows import TAG, ImageFacts, Stamp, embedding_column, make_rows
from serve_app.batch.snapshot import SnapshotWriter
from serve_app.batch.storage import Storage, url_of
from serve_app.config.service import ServiceConfig, parse_config
from serve_app.pipeline.local_scorer import LocalScorer
from serve_app.processes.private_ray import private_folder, private_ray
from serve_app.tagging.tag_bank import TagBank, row_keys

CHUNK = 1000
ROOT = Path(__file__).parents[1]


def make_config(folder: Path) -> ServiceConfig:
    """Return a configuration of a base-size checkpoint with the general vocabulary.

    Its tag banks are stored in the folder too.
    """
    plugin = {"model": str(build_base_checkpoint(folder / "base")), "confidence_threshold": 0.01}
    blocks = {
        "labels": "vocabularies/general.yaml",
        "tag_banks": str(folder / "banks"),
        "plugins": {"siglip": plugin},
    }
    return parse_config(blocks, ROOT / "configs")


def store_random_bank(scorer: LocalScorer) -> TagBank:
    """Store a bank of random unit embeddings for the default vocabulary.

    Encoding its 3,000 prompts is not part of the measurement.
    """
    vocabulary = scorer.settings.vocabulary
    rows = (
        np.random.default_rng(1)
        .normal(size=(len(row_keys(vocabulary)), scorer.checkpoint.embedding_width))
        .astype(np.float32)
    )
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return scorer.known.keep(vocabulary, dict(zip(row_keys(vocabulary), rows, strict=True)))


def store_embeddings(folder: Path, rows: int, width: int, checkpoint: str) -> None:
    """Write the output of a finished job with `--embeddings`."""
    storage = Storage()
    url = url_of(str(folder))
    random = np.random.default_rng(0)
    writer = SnapshotWriter(storage, url)
    writing = Writing(storage, url, "parquet", "zstd", embeddings=True)
    images = [ImageFacts(width=640, height=480)] * CHUNK
    for start in range(0, rows, CHUNK):
        uris = [f"/images/{i}.jpg" for i in range(start, start + CHUNK)]
        inputs = own_table(uris, list(uris), [0] * CHUNK, uris, None)
        writer.add(inputs)
        embeds = random.normal(size=(CHUNK, width)).astype(np.float32)
        embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
        column = embedding_column(embeds, np.arange(CHUNK), CHUNK)
        no_tags = pa.nulls(CHUNK, pa.list_(TAG))
        rows_made = make_rows(inputs, images, no_tags, column, Stamp("base", None, "none"))
        write_rows(writing, writer.chunks[-1].name, rows_made, 0)
    writer.finish("object", None)
    manifest = {
        "checkpoint": {"fingerprint": checkpoint},
        "options": {"embeddings": True, "output_format": "parquet"},
    }
    storage.write(f"{url}/_manifest.json", json.dumps(manifest).encode())


def floor_seconds(rows: int, width: int, tags: int) -> float:
    """Return the time of the matrix products alone, chunk by chunk, on all cores, in seconds."""
    image = np.random.default_rng(0).normal(size=(CHUNK, width)).astype(np.float32)
    text = np.zeros((tags, width), np.float32)
    started = time.perf_counter()
    for _ in range(rows // CHUNK):
        image @ text.T
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    seconds = []
    floors = []
    written = 0
    with TemporaryDirectory() as temporary, private_folder() as folder, private_ray(folder):
        config = make_config(Path(temporary))
        scorer = LocalScorer(config)
        bank = store_random_bank(scorer)
        source = Path(temporary) / "stored"
        store_embeddings(source, given.rows, bank.text_embeds.shape[1], scorer.fingerprint)
        for run in range(given.runs):
            options = BatchOptions(
                url_of(str(source)), url_of(f"{temporary}/out{run}"), chunk_size=CHUNK
            )
            started = time.perf_counter()
            result = run_retag_job(config, options)
            seconds.append(time.perf_counter() - started)
            floors.append(
                floor_seconds(given.rows, bank.text_embeds.shape[1], len(bank.vocabulary.names))
            )
            assert result.encoded == given.rows
            written = result.nbytes
    row = {
        "rows": given.rows,
        "tags": len(bank.vocabulary.tags),
        "names": len(bank.vocabulary.names),
        "seconds": round(statistics.median(seconds), 2),
        "runs": [round(value, 2) for value in seconds],
        "product_alone_s": round(statistics.median(floors), 2),
        "output_mb": round(written / 1e6, 1),
        "cores": os.cpu_count(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    Console().print(
        f"{row['rows']:,} embeddings × {row['tags']:,} tags: {row['seconds']} s, "
        f"the product alone {row['product_alone_s']} s"
    )
    print(json.dumps(row))


if __name__ == "__main__":
    main()
