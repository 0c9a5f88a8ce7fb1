"""Tags stored embeddings again, for a new vocabulary, calibration or threshold.

The input is the output of an earlier job with `--embeddings`; no image is read and no vision tower
is loaded. Chunks stay the same, and so do the names of the output files.
"""

from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from serve_app.batch.blocks import EncodedBlock
from serve_app.batch.cluster import connected, cpus, result_of
from serve_app.batch.engine import ChunkInputs, Watcher
from serve_app.batch.input_tables import OWN
from serve_app.batch.job import MANIFEST, Job, JobResult
from serve_app.batch.job_scoring import Scoring, score_rows
from serve_app.batch.manifests import RESERVED
from serve_app.batch.options import BatchOptions
from serve_app.batch.output_files import Writing, Written, write_rows
from serve_app.batch.rows import ImageFacts, RowError
from serve_app.batch.snapshot import FOLDER, INDEX, Snapshot
from serve_app.batch.storage import Storage
from serve_app.batch.tagging_job import (
    folder_name,
    load_remotely,
    recorded_of,
    scoring_identity,
)
from serve_app.batch.urls import folder_of, joined, name_of, shown_url
from serve_app.config.public import show_config, show_live
from serve_app.config.service import ServiceConfig
from serve_app.errors import ConfigError
from serve_app.siglip.scoring import stored_embeddings
from serve_app.tagging.options import tag_options
from serve_app.untrusted.bounded_files import parse_json

MAX_MANIFEST_BYTES = 64 * 2**20
CHUNKS_PER_CPU = 2
"""Chunks under way."""


def run_retag_job(
    config: ServiceConfig, options: BatchOptions, address: str | None = None
) -> JobResult:
    """Tag the embeddings that an earlier job stored; see `run_job`.

    Args:
        config: Configuration of the service; with the checkpoint of the embeddings.
        options: `source` is the folder of the earlier job, or its OUTPUT if that contains only one
            job.
        address: Address of a Ray cluster; see `connected` for the default.

    Raises:
        TaggerError: There are no embeddings, they belong to another checkpoint, or an option cannot
            work.
    """
    options.check()
    source, manifest = _find_job(options.storage, options.source)
    _check_source(options, manifest, source)
    with connected(address):
        scoring = load_remotely(config, tag_options(vocabulary=options.vocabulary))
        made_with = manifest["checkpoint"].get("fingerprint")
        if made_with != scoring.checkpoint:
            raise ConfigError(
                f"{shown_url(source)} was made with the checkpoint {made_with}, and the "
                f"configuration's is {scoring.checkpoint}; "
                "embeddings of different checkpoints cannot be compared."
            )
        identity = {
            "embeddings": name_of(source),
            "rows": [options.output_format, options.embeddings],
            **scoring_identity(config, options.vocabulary, scoring),
        }
        name = folder_name(config.siglip.model_shown, identity)
        writing = Writing.into(joined(options.output, name), options)
        if writing.folder == source:
            raise ConfigError(
                "these tags are there already: the configuration is that of the stored output."
            )
        _copy_inputs(options.storage, source, writing.folder)
        shown = show_config(config, show_live(config.tag_settings()))
        recorded = recorded_of(scoring, shown) | {"embeddings": shown_url(source)}
        start_engine = partial(RetagEngine, scoring, writing, source)
        return Job(options, writing, recorded, start_engine).run()


class RetagEngine:
    """Scores the stored embeddings of chunks on all CPUs; see `Engine`."""

    def __init__(self, scoring: Scoring, writing: Writing, source: str, snapshot: Snapshot) -> None:
        self._scoring = ray.put(scoring)
        self._writing = writing
        self._source = source
        self._retag = ray.remote(retag_chunk).options(num_cpus=min(1.0, cpus()), max_retries=3)

    def run(self, chunks: Iterator[ChunkInputs], watcher: Watcher) -> None:
        """Run every chunk; see `Engine`."""
        max_running = CHUNKS_PER_CPU * max(1, int(cpus()))
        running: deque[Any] = deque()
        for chunk, _ in chunks:
            reference = self._retag.remote(self._scoring, self._writing, self._source, chunk.name)
            running.append(reference)
            if len(running) >= max_running:
                self._finish_one(running, watcher)
        while running:
            self._finish_one(running, watcher)

    def end(self) -> None:
        """Do nothing; no resource is held."""

    def _finish_one(self, running: deque[Any], watcher: Watcher) -> None:
        watcher.chunk_done(result_of(running.popleft()))
        watcher.tick(0)


def retag_chunk(scoring: Scoring, writing: Writing, source: str, name: str) -> Written:
    """Score the stored embeddings of one chunk and write its rows."""
    url = joined(source, name + ".parquet")
    stored = pq.ParquetFile(writing.storage.open(url)).read()
    encoded = _stored_block(stored, scoring.width)

    copied = [
        column
        for column in stored.column_names
        if column == "uri" or column not in (*RESERVED, *OWN.names)
    ]
    rows = score_rows(scoring, stored.select(copied), encoded, writing.embeddings)
    return write_rows(writing, name, rows, stored["embedding"].nbytes)


def _stored_block(stored: pa.Table, width: int) -> EncodedBlock:
    """Return the rows of an earlier job as inputs that are encoded already."""
    columns = stored.select(["etag", "width", "height", "error"]).to_pylist()
    images = tuple(
        ImageFacts(
            row["etag"],
            row["width"],
            row["height"],
            error=None if row["error"] is None else RowError(**row["error"]),
        )
        for row in columns
    )
    embeddings = stored["embedding"].combine_chunks()
    views = np.asarray(embeddings.is_valid()).astype(np.int64)
    values = embeddings.drop_null().flatten().to_numpy(zero_copy_only=False)
    return EncodedBlock(images, views, stored_embeddings(values.reshape(-1, width)))


def _find_job(storage: Storage, source: str) -> tuple[str, dict[str, Any]]:
    """Return the folder of an earlier job, and its manifest."""
    folder = source
    if storage.find(joined(source, MANIFEST)) is None:
        folder = _only_job_below(storage, source)

    shown = f"{shown_url(folder)}/{MANIFEST}"
    data, _ = storage.read(joined(folder, MANIFEST), MAX_MANIFEST_BYTES)
    manifest = parse_json(data, shown)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("checkpoint"), dict):
        raise ConfigError(f"{shown} is damaged; run the earlier job again.")
    return folder, manifest


def _only_job_below(storage: Storage, source: str) -> str:
    """Return the folder of the only finished job below a prefix."""
    found = [one.url for one in storage.list(source) if one.url.endswith(f"/{MANIFEST}")]
    folders = [folder_of(url) for url in found]
    if len(folders) == 1:
        return folders[0]
    contents = f"no {MANIFEST}"
    if folders:
        contents = f"{len(folders)} jobs: {', '.join(name_of(folder) for folder in folders)}"
    raise ConfigError(f"{shown_url(source)} holds {contents}; name the folder of one finished job.")


def _check_source(options: BatchOptions, manifest: dict[str, Any], source: str) -> None:
    """Check that an earlier job has embeddings, and that every option works without images.

    Raises:
        ConfigError: It has none, or an option needs the images.
    """
    if "service" in manifest:
        raise ConfigError(
            f"{shown_url(source)} was tagged through a service, "
            "which does not tell whose its embeddings are."
        )
    made_with = manifest.get("options", {})
    if not made_with.get("embeddings") or made_with.get("output_format") != "parquet":
        raise ConfigError(
            f"{shown_url(source)} holds no embeddings; make it with --embeddings, as Parquet."
        )
    needs_images = {
        "--quality high": options.quality == "high",
        "--limit": options.limit,
        "--partition-by": options.partition_by,
        "--update": options.update,
        "--retry-errors": options.retry_errors,
    }
    if wrong := [name for name, value in needs_images.items() if value]:
        raise ConfigError(
            f"{', '.join(wrong)} needs the images and does not go with --from-embeddings."
        )


def _copy_inputs(storage: Storage, source: str, folder: str) -> None:
    """Copy the snapshot of the earlier job, its index last."""
    if storage.find(joined(folder, FOLDER, INDEX)) is not None:
        return
    files = [found.url for found in storage.list(joined(source, FOLDER))]
    for url in sorted(files, key=lambda url: url.endswith(INDEX)):
        data, _ = storage.read(url)
        storage.write(joined(folder, FOLDER, name_of(url)), data)
