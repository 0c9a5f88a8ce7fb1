"""The ordinary job: its own encoders encode the images, and a vocabulary tags them."""

import dataclasses
import hashlib
import json
import re
from functools import partial
from typing import Any

import ray

from serve_app.batch.cluster import connected, cpus, result_of
from serve_app.batch.encoder_actor import EncoderActor
from serve_app.batch.encoder_pool import EncoderPool
from serve_app.batch.encoding_engine import EncodingEngine, Flow
from serve_app.batch.job import Job, JobResult
from serve_app.batch.job_scoring import Scoring, load_scoring
from serve_app.batch.options import BatchOptions
from serve_app.batch.output_files import Writing, row_bytes
from serve_app.batch.preparing import Model, Reading
from serve_app.batch.snapshot import Snapshot
from serve_app.batch.urls import joined, shown_url
from serve_app.config.public import show_config, show_live
from serve_app.config.service import ServiceConfig
from serve_app.hardware.plan import DeploymentPlan, Plan
from serve_app.hardware.planning import hardware_here, plan_service
from serve_app.processes.cluster_nodes import cluster_hardware
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.precision import Precision
from serve_app.siglip.prepare import ImagePreparer
from serve_app.tagging.options import TagOptions, tag_options

MAX_BLOCK_IMAGES = 128
MAX_BLOCK_BYTES = 64 * 2**20
"""Starting a task costs little beside a block, and a few hundred blocks fit into memory."""
ID_DIGITS = 12


def run_job(config: ServiceConfig, options: BatchOptions, address: str | None = None) -> JobResult:
    """Tag everything in INPUT; continue where an earlier run of the same job ended.

    Args:
        config: Configuration of the service.
        options: What goes in and out.
        address: Address of a Ray cluster; see `connected` for the default.

    Raises:
        TaggerError: The job cannot be done, or too many inputs failed; what is written stays and is
            not done again.
    """
    options.check()
    with connected(address) as own:
        find_hardware = hardware_here if own else cluster_hardware
        plan = plan_service(config, find_hardware(config.hardware, config.siglip))
        scoring = load_remotely(
            config,
            tag_options(vocabulary=options.vocabulary, quality=options.quality),
            _text_precision(plan),
        )
        options = options.with_chunk_size(
            row_bytes(scoring.width, scoring.rule.max_tags, options.embeddings)
        )
        name = folder_name(plan.checkpoint, identity_of(config, plan, options, scoring))
        writing = Writing.into(joined(options.output, name), options)
        shown = show_config(config, show_live(config.tag_settings()), plan.shown())
        start_engine = partial(_start, config, options, plan, scoring, writing)
        return Job(options, writing, recorded_of(scoring, shown), start_engine).run()


def recorded_of(scoring: Scoring, shown: dict[str, Any]) -> dict[str, Any]:
    """Return what the manifest records about how rows were made.

    Args:
        scoring: How the rows are scored.
        shown: The configuration as `show_config` returns it.
    """
    stamp = dataclasses.asdict(scoring.stamp) | {"fingerprint": scoring.checkpoint}
    return {"checkpoint": stamp, "config": shown}


def load_remotely(
    config: ServiceConfig, options: TagOptions, precision: Precision | None = None
) -> Scoring:
    """Call `load_scoring` on a worker, because the driver may run on a small head node.

    Raises:
        TaggerError: See `load_scoring`.
    """
    load = ray.remote(load_scoring).options(num_cpus=0, max_retries=3)
    scoring: Scoring = result_of(load.remote(config, options, precision))
    return scoring


def _text_precision(plan: Plan) -> Precision:
    """Return what the vocabulary is encoded in: the dtype of the plan's text tower, on a CPU.

    The task that encodes it has no part of a GPU, and may run on a node without one.
    """
    return dataclasses.replace(plan.text_precision, device="cpu", attention="sdpa")


def identity_of(
    config: ServiceConfig, plan: Plan, options: BatchOptions, scoring: Scoring
) -> dict[str, Any]:
    """Return everything that determines the rows."""
    precision = plan.precision
    return {
        **input_identity(options),
        "rows": [options.output_format, options.embeddings, options.quality],
        "model": [precision.dtype, precision.quantization, config.siglip.max_num_patches],
        "image_decoding": config.image_decoding,
        "limits": [
            config.limits.max_image_bytes,
            config.limits.max_image_pixels,
            config.limits.image_formats,
        ],
        **scoring_identity(config, options.vocabulary, scoring),
    }


def input_identity(options: BatchOptions) -> dict[str, Any]:
    """Return everything that determines which inputs a chunk has."""
    return {
        "input": [
            shown_url(options.source),
            options.input_format,
            options.uri_column,
            options.image_column,
            options.limit,
        ],
        "cut": [options.chunk_size, options.partition_by],
    }


def scoring_identity(
    config: ServiceConfig, vocabulary: str | None, scoring: Scoring
) -> dict[str, Any]:
    """Return everything that determines the tags, apart from the embeddings."""
    rule = scoring.rule
    return {
        "checkpoint": scoring.checkpoint,
        "vocabulary": scoring.stamp.vocabulary_fingerprint,
        "tags": config.vocabularies[
            vocabulary or config.tag_settings().default_vocabulary
        ].model_dump(mode="json"),
        "rule": [
            rule.confidence_threshold,
            rule.max_tags,
            rule.sort_by,
            rule.score,
            rule.min_tags,
            rule.parents,
        ],
        "allowed": None if rule.allowed is None else rule.allowed.tolist(),
    }


def folder_name(model: str, identity: dict[str, Any]) -> str:
    """Return the name of an output folder.

    It changes with everything that determines the rows, so that the output of two configurations
    never mixes.
    """
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:ID_DIGITS]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.rsplit("/", 1)[-1]).strip("-")
    return f"{name}-{digest}"


def _start(
    config: ServiceConfig,
    options: BatchOptions,
    plan: Plan,
    scoring: Scoring,
    writing: Writing,
    snapshot: Snapshot,
) -> EncodingEngine:
    """Start the encoders and return the engine that feeds them."""
    plugin = config.siglip
    planned = plan.deployments["image_encoder"]
    model = Model(
        plugin.model_source,
        config.revision,
        plan.precision,
        plan.batch_size,
        plugin.max_num_patches,
        scoring.width,
    )
    limits = config.image_limits()
    reading = Reading(
        model,
        limits,
        config.limits.max_image_bytes,
        options.quality,
        snapshot.kind,
        snapshot.image_column,
        options.storage,
    )
    checkpoint = load_checkpoint(model.source, model.revision)
    image_nbytes = ImagePreparer(checkpoint, limits, model.max_num_patches).max_nbytes
    return EncodingEngine(
        reading,
        writing,
        scoring,
        EncoderPool(model, planned, EncoderActor),
        flow_of(options, planned, model.batch_size, image_nbytes),
    )


def flow_of(
    options: BatchOptions, planned: DeploymentPlan, batch_size: int, image_nbytes: int
) -> Flow:
    """Return how much is under way at a time, on the CPUs that the encoders leave.

    Args:
        options: Options of the job.
        planned: Resources of the encoders.
        batch_size: Images in one forward pass.
        image_nbytes: Size in bytes of the largest prepared image.
    """
    images = max(1, min(MAX_BLOCK_IMAGES, MAX_BLOCK_BYTES // image_nbytes, options.chunk_size))
    if images > batch_size:  # only whole batches: the rest would be a forward pass of its own
        images = images // batch_size * batch_size
    spare_cpus = max(0.5, cpus() - planned.num_cpus * planned.max_replicas)
    prepare_cpus = min(1.0, spare_cpus)
    return Flow(images, prepare_cpus, max(1, int(spare_cpus / prepare_cpus)) + 1)
