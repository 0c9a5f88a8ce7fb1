"""A whole job: connect, list or go on, run what is missing, prove that all is there, and say so."""

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import ray

from serve_app import __version__
from serve_app.batch.cluster import connected, cpus, hardware_of_cluster
from serve_app.batch.encoders import EncoderPool, EncoderScale, cause_of
from serve_app.batch.inputs import find_inputs
from serve_app.batch.options import ERRORS_FROM, BatchOptions
from serve_app.batch.pipeline import Flow, Pipeline
from serve_app.batch.progress import Metrics, Tally, shown_progress
from serve_app.batch.snapshot import Chunk, Cut, Snapshot, load_snapshot, read_chunk, take_snapshot
from serve_app.batch.storage import joined, shown_url
from serve_app.batch.verify import Proof, verify, written_names
from serve_app.batch.workers import Model, Reading, Scoring, Writing, Written, load_scoring
from serve_app.config import ServiceConfig
from serve_app.errors import ServiceError
from serve_app.hardware.plan import Plan
from serve_app.planning import plan_service, resolve_config
from serve_app.shown import show_config, show_live
from serve_app.siglip.hub import load_checkpoint
from serve_app.tagging.settings import TagOptions

MANIFEST, SUCCESS = "_manifest.json", "_SUCCESS"
MAX_BLOCK_IMAGES, MAX_BLOCK_BYTES = 128, 64 * 2**20
"""Of a block: large enough that a task's start costs little, small enough that a few hundred fit into memory."""
ID_DIGITS = 12


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended.

    Attributes:
        folder: URL of its output.
        inputs: In all.
        errors: Rows with an error, by code.
        encoded: Inputs that this run did; the others were there already.
        per_second: Inputs a second of this run.
        nbytes: Of the output files.
    """

    folder: str
    inputs: int
    errors: dict[str, int]
    encoded: int
    per_second: float
    nbytes: int


def run_job(config: ServiceConfig, options: BatchOptions, address: str | None = None) -> JobResult:
    """Tag everything that INPUT holds, going on where an earlier run of the same job ended.

    Args:
        config: The service's.
        options: What goes in and out.
        address: Of a Ray cluster; None for the job's own or a new one on this machine.

    Raises:
        TaggerError: It cannot be done, or too many inputs failed; what is written stays and is not done again.
    """
    options.check()
    with connected(address) as own:
        plan = plan_service(config, partial(hardware_of_cluster, own))
        config = resolve_config(config, plan)
        scoring = _load_scoring(config, options)
        writing = Writing(
            options.storage,
            joined(options.output, _folder_name(config, options, scoring)),
            options.output_format,
            options.compression,
            options.embeddings,
        )
        print(f"output: {shown_url(writing.folder)}", file=sys.stderr)
        snapshot = load_snapshot(options.storage, writing.folder)
        if snapshot is None:
            cut = Cut(options.chunk_size, options.partition_by, options.limit)
            snapshot = take_snapshot(options.storage, writing.folder, find_inputs(options), cut)
        return _Job(config, options, plan, scoring, writing, snapshot).run()


@dataclass(frozen=True, slots=True)
class _Job:
    config: ServiceConfig
    options: BatchOptions
    plan: Plan
    scoring: Scoring
    writing: Writing
    snapshot: Snapshot

    def run(self) -> JobResult:
        """Do the chunks that have no output, and prove that all have one."""
        started = datetime.now(UTC)
        there = written_names(self.options.storage, self.writing)
        left = [chunk for chunk in self.snapshot.chunks if chunk.name not in there]
        tally = Tally(self.snapshot.inputs, done=self.snapshot.inputs - sum(chunk.count for chunk in left))
        if tally.done:
            print(f"{tally.done:,} of {tally.inputs:,} inputs are tagged already", file=sys.stderr)
        if left:
            self._tag(left, tally)
        proof = verify(self.snapshot, self.writing)
        if proof.wrong:
            self._forget(proof)
        self._write_manifest(proof, started)
        return JobResult(self.writing.folder, proof.rows, proof.errors, tally.encoded, tally.per_second, proof.nbytes)

    def _tag(self, left: list[Chunk], tally: Tally) -> None:
        reading, pool = self._reading(), self._pool()
        counters = Metrics()
        try:
            pipeline = Pipeline(reading, self.writing, self.scoring, pool, self._flow(reading))
            with shown_progress(tally) as show:

                def done(written: Written) -> None:
                    tally.add(written)
                    counters.add(written)
                    self._stop_if_wrong(tally)

                def tick(encoders: int) -> None:
                    tally.encoders = encoders
                    counters.show(tally)
                    show()

                pipeline.run(self._with_rows(left), done, tick)
        finally:
            pool.end()

    def _with_rows(self, chunks: list[Chunk]) -> Iterator[tuple[Chunk, pa.Table]]:
        for chunk in chunks:
            yield chunk, read_chunk(self.options.storage, self.writing.folder, chunk)

    def _reading(self) -> Reading:
        plugin, limits = self.config.siglip, self.config.limits
        model = Model(
            plugin.model_source,
            self.config.revision,
            plugin.precision,
            plugin.resolved_batch_size,
            plugin.max_num_patches,
            self.scoring.scored.bank.text_embeds.shape[1],
        )
        return Reading(
            model,
            self.config.image_limits(),
            limits.max_image_bytes,
            self.options.quality,
            self.snapshot.kind,
            self.snapshot.image_column,
            self.options.storage,
        )

    def _pool(self) -> EncoderPool:
        planned = self.plan.deployments["image_encoder"]
        scale = EncoderScale(planned.num_cpus, planned.num_gpus, planned.min_replicas, planned.max_replicas)
        return EncoderPool(self._reading().model, scale)

    def _flow(self, reading: Reading) -> Flow:
        checkpoint = load_checkpoint(reading.model.source, reading.model.revision)
        side, patch = checkpoint.image_size_px, checkpoint.patch_size_px
        nbytes = 3 * (side**2 if side is not None else reading.model.max_num_patches * patch**2)
        images = max(1, min(MAX_BLOCK_IMAGES, MAX_BLOCK_BYTES // nbytes, self.options.chunk_size))
        planned = self.plan.deployments["image_encoder"]
        spare = max(0.5, cpus() - planned.num_cpus * planned.max_replicas)
        prepare_cpus = min(1.0, spare)
        return Flow(images, prepare_cpus, max(1, int(spare / prepare_cpus)) + 1)

    def _stop_if_wrong(self, tally: Tally) -> None:
        most = self.options.max_error_fraction
        if tally.encoded >= ERRORS_FROM and tally.failed > most * tally.encoded:
            raise ServiceError(
                f"{tally.failed:,} of {tally.encoded:,} inputs failed ({_listed(tally.errors)}), more than --max-error-fraction {most:g}; "
                "what is written stays, and the same command goes on."
            )

    def _forget(self, proof: Proof) -> None:
        """Delete outputs that are not what they should be, so that the next run does them."""
        for name in proof.wrong:
            self.options.storage.delete(self.writing.url(name))
        raise ServiceError(
            f"{len(proof.wrong)} output files were missing, damaged or held other rows, such as {proof.wrong[0]}; "
            "they are deleted, run the same command again."
        )

    def _write_manifest(self, proof: Proof, started: datetime) -> None:
        told = {
            "input": shown_url(self.options.source),
            "inputs": proof.rows,
            "tagged": proof.rows - sum(proof.errors.values()),
            "errors": proof.errors,
            "files": len(self.snapshot.chunks),
            "bytes": proof.nbytes,
            "checkpoint": dataclasses.asdict(self.scoring.stamp) | {"fingerprint": self.scoring.checkpoint},
            "options": {
                key: value for key, value in dataclasses.asdict(self.options).items() if key not in ("storage", "source", "output")
            },
            "config": show_config(self.config, show_live(self.config.tag_settings())),
            "versions": {name: version(name) for name in ("ray", "torch", "transformers", "pillow", "pyarrow")}
            | {"siglip-serve": __version__},
            "last_run": {"started_at": started.isoformat(), "ended_at": datetime.now(UTC).isoformat()},
        }
        storage = self.options.storage
        storage.write(joined(self.writing.folder, MANIFEST), json.dumps(told, indent=2, ensure_ascii=False, default=str).encode())
        storage.write(joined(self.writing.folder, SUCCESS), b"")


def _load_scoring(config: ServiceConfig, options: BatchOptions) -> Scoring:
    """Encode the vocabulary on a worker: the driver may stand on a head node that is small."""
    ask = ray.remote(load_scoring).options(num_cpus=0, max_retries=3)
    try:
        scoring: Scoring = ray.get(ask.remote(config, TagOptions(vocabulary=options.vocabulary, quality=options.quality)))
    except ray.exceptions.RayError as error:
        if (cause := cause_of(error)) is not None:
            raise cause from None
        raise
    return scoring


def _folder_name(config: ServiceConfig, options: BatchOptions, scoring: Scoring) -> str:
    """Return a name that changes with everything that rows follow from, so that outputs of two configurations never mix."""
    plugin, rule = config.siglip, scoring.rule
    told: dict[str, Any] = {
        "input": [shown_url(options.source), options.input_format, options.uri_column, options.image_column, options.limit],
        "cut": [options.chunk_size, options.partition_by],
        "rows": [options.output_format, options.embeddings, options.quality],
        "checkpoint": scoring.checkpoint,
        "model": [plugin.dtype, plugin.quantization, plugin.max_num_patches],
        "limits": [config.limits.max_image_bytes, config.limits.max_image_pixels, config.limits.image_formats],
        "vocabulary": scoring.stamp.vocabulary_fingerprint,
        "tags": config.vocabularies[options.vocabulary or config.tag_settings().default].model_dump(mode="json"),
        "rule": [rule.confidence_threshold, rule.max_tags, rule.sort_by, rule.score, rule.min_tags, rule.parents],
        "allowed": None if rule.allowed is None else rule.allowed.tolist(),
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:ID_DIGITS]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", plugin.model_shown.rsplit("/", 1)[-1]).strip("-")
    return f"{name}-{digest}"


def _listed(errors: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {code}" for code, count in sorted(errors.items(), key=lambda item: -item[1]))
