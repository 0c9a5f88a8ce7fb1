"""Tagging again from stored embeddings: a new vocabulary, calibration or threshold, without pixels
and without the vision tower.

The output of an earlier job with `--embeddings` is the input; chunks, and so the names of the
output files, stay as they were.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from serve_app.batch.cluster import connected, cpus, result_of
from serve_app.batch.input_tables import OWN
from serve_app.batch.job import MANIFEST, Job, JobResult
from serve_app.batch.manifests import RESERVED
from serve_app.batch.options import BatchOptions
from serve_app.batch.rows import Facts, Writing, Written, encode_rows
from serve_app.batch.snapshot import FOLDER, INDEX, Chunk, Snapshot
from serve_app.batch.storage import Storage, joined, name_of, shown_url
from serve_app.batch.tagging_job import (
    folder_name,
    load_remotely,
    scoring_identity,
    told_of,
    writing_of,
)
from serve_app.batch.workers import Scoring, score_rows
from serve_app.config.public import show_config, show_live
from serve_app.config.service import ServiceConfig
from serve_app.errors import ConfigError
from serve_app.siglip.scoring import stored_embeddings
from serve_app.tagging.options import tag_options
from serve_app.untrusted.bounded_files import parse_json

MAX_MANIFEST_BYTES = 64 * 2**20
AHEAD = 2
"""Chunks under way for each CPU."""


def run_retag_job(
    config: ServiceConfig, options: BatchOptions, address: str | None = None
) -> JobResult:
    """Tag the embeddings that an earlier job stored; see `run_job`.

    Args:
        config: The service's; its checkpoint has to be that of the embeddings.
        options: `source` is the folder of the earlier job, or OUTPUT of it where that holds one job
            only.
        address: Of a Ray cluster.

    Raises:
        TaggerError: There are no embeddings, they are another checkpoint's, or an option cannot
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
                f"{shown_url(source)} was made with the checkpoint {made_with}, and the configuration's is {scoring.checkpoint}; "
                "embeddings of different checkpoints cannot be compared."
            )
        identity = {
            "embeddings": name_of(source),
            "rows": [options.output_format, options.embeddings],
            **scoring_identity(config, options.vocabulary, scoring),
        }
        writing = writing_of(options, folder_name(config.siglip.model_shown, identity))
        if writing.folder == source:
            raise ConfigError(
                "these tags are there already: the configuration is that of the stored output."
            )
        _copy_inputs(options.storage, source, writing.folder)
        told = told_of(scoring, show_config(config, show_live(config.tag_settings()))) | {
            "embeddings": shown_url(source)
        }
        return Job(options, writing, told, partial(RetagEngine, scoring, writing, source)).run()


class RetagEngine:
    """Scores chunk after chunk of stored embeddings, as many at a time as there are CPUs."""

    def __init__(self, scoring: Scoring, writing: Writing, source: str, snapshot: Snapshot) -> None:
        self._scoring = ray.put(scoring)
        self._writing = writing
        self._source = source
        self._retag = ray.remote(retag_chunk).options(num_cpus=min(1.0, cpus()), max_retries=3)

    def run(
        self,
        chunks: Iterator[tuple[Chunk, pa.Table]],
        done: Callable[[Written], None],
        tick: Callable[[int], None],
    ) -> None:
        """Run every chunk; see `Engine`."""
        running: deque[Any] = deque()
        for chunk, _ in chunks:
            running.append(
                self._retag.remote(self._scoring, self._writing, self._source, chunk.name)
            )
            if len(running) >= AHEAD * max(1, int(cpus())):
                done(result_of(running.popleft()))
                tick(0)
        while running:
            done(result_of(running.popleft()))
            tick(0)

    def end(self) -> None:
        """Nothing is held."""


def retag_chunk(scoring: Scoring, writing: Writing, source: str, name: str) -> Written:
    """Score the stored embeddings of one chunk and write its rows."""
    url = joined(source, name + ".parquet")
    found = pq.ParquetFile(writing.storage.open(url)).read()
    embeddings = found["embedding"].combine_chunks()
    places = np.flatnonzero(np.asarray(embeddings.is_valid())).tolist()
    values = embeddings.drop_null().flatten().to_numpy(zero_copy_only=False)
    width = scoring.scored.bank.text_embeds.shape[1]
    embeds = stored_embeddings(values.reshape(-1, width)) if places else None
    errors = tuple(
        None if error is None else (error["code"], error["message"])
        for error in found["error"].to_pylist()
    )
    etags, widths, heights = (
        tuple(found[column].to_pylist()) for column in ("etag", "width", "height")
    )
    facts = Facts(etags, widths, heights, errors, values.nbytes)
    others = [
        column
        for column in found.column_names
        if column == "uri" or column not in (*RESERVED, *OWN.names)
    ]
    rows = score_rows(
        scoring, found.select(others), facts, embeds, places, None, writing.embeddings
    )
    data = encode_rows(rows, writing.output_format, writing.compression)
    writing.storage.write(writing.url(name), data)
    return Written(
        len(found),
        dict(Counter(error[0] for error in errors if error is not None)),
        values.nbytes,
        len(data),
    )


def _find_job(storage: Storage, source: str) -> tuple[str, dict[str, Any]]:
    """Return the folder of an earlier job, and its manifest."""
    if storage.find(joined(source, MANIFEST)) is None:
        folders = [
            found.url.rsplit("/", 1)[0]
            for found in storage.list(source)
            if found.url.endswith(f"/{MANIFEST}")
        ]
        if len(folders) != 1:
            found_there = (
                f"{len(folders)} jobs: {', '.join(name_of(folder) for folder in folders)}"
                if folders
                else f"no {MANIFEST}"
            )
            raise ConfigError(
                f"{shown_url(source)} holds {found_there}; name the folder of one finished job."
            )
        source = folders[0]
    manifest = parse_json(
        storage.read(joined(source, MANIFEST), MAX_MANIFEST_BYTES)[0],
        f"{shown_url(source)}/{MANIFEST}",
    )
    if not isinstance(manifest, dict) or not isinstance(manifest.get("checkpoint"), dict):
        raise ConfigError(f"{shown_url(source)}/{MANIFEST} is damaged; run the earlier job again.")
    return source, manifest


def _check_source(options: BatchOptions, manifest: dict[str, Any], source: str) -> None:
    if "service" in manifest:
        raise ConfigError(
            f"{shown_url(source)} was tagged through a service, which does not tell whose its embeddings are."
        )
    made = manifest.get("options", {})
    if not made.get("embeddings") or made.get("output_format") != "parquet":
        raise ConfigError(
            f"{shown_url(source)} holds no embeddings; make it with --embeddings, as Parquet."
        )
    asked = {
        "--quality high": options.quality == "high",
        "--limit": options.limit,
        "--partition-by": options.partition_by,
        "--update": options.update,
        "--retry-errors": options.retry_errors,
    }
    if wrong := [name for name, given in asked.items() if given]:
        raise ConfigError(
            f"{', '.join(wrong)} needs the pictures and does not go with --from-embeddings."
        )


def _copy_inputs(storage: Storage, source: str, folder: str) -> None:
    """Take over the snapshot of the earlier job, its index last."""
    if storage.find(joined(folder, FOLDER, INDEX)) is not None:
        return
    found = sorted(storage.list(joined(source, FOLDER)), key=lambda one: one.url.endswith(INDEX))
    for one in found:
        storage.write(joined(folder, FOLDER, name_of(one.url)), storage.read(one.url)[0])
