"""The ordinary job: pictures are encoded by encoders of the job's own, and scored against a
vocabulary of the configuration.
"""

import dataclasses
import hashlib
import json
import re
from functools import partial
from typing import Any

import ray

from serve_app.batch.cluster import connected, cpus, result_of
from serve_app.batch.encoders import EncoderPool, EncoderScale
from serve_app.batch.job import Job, JobResult
from serve_app.batch.options import BatchOptions
from serve_app.batch.pipeline import Flow, Pipeline
from serve_app.batch.rows import Writing, row_bytes
from serve_app.batch.snapshot import Snapshot
from serve_app.batch.storage import joined, shown_url
from serve_app.batch.workers import Encoder, Model, Reading, Scoring, load_scoring
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
"""Of a block: large enough that a task's start costs little, small enough that a few hundred fit
into memory."""
ID_DIGITS = 12


def run_job(config: ServiceConfig, options: BatchOptions, address: str | None = None) -> JobResult:
    """Tag everything that INPUT holds, going on where an earlier run of the same job ended.

    Args:
        config: The service's.
        options: What goes in and out.
        address: Of a Ray cluster; None for the one that this process is connected to, the Ray job's
            own, or a new one on this machine.

    Raises:
        TaggerError: It cannot be done, or too many inputs failed; what is written stays and is not
            done again.
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
        width = scoring.scored.bank.text_embeds.shape[1]
        options = options.with_chunk_size(
            row_bytes(width, scoring.rule.max_tags, options.embeddings)
        )
        writing = writing_of(
            options, folder_name(plan.checkpoint, identity_of(config, plan, options, scoring))
        )
        return Job(
            options,
            writing,
            told_of(scoring, show_config(config, show_live(config.tag_settings()), plan.shown())),
            partial(_start, config, options, plan, scoring, writing),
        ).run()


def writing_of(options: BatchOptions, name: str) -> Writing:
    """Return where and how the rows of a job are written."""
    return Writing(
        options.storage,
        joined(options.output, name),
        options.output_format,
        options.compression,
        options.embeddings,
    )


def told_of(scoring: Scoring, shown: dict[str, Any]) -> dict[str, Any]:
    """Return what the manifest records about how rows were made.

    Args:
        scoring: What the rows are scored against.
        shown: The configuration as `show_config` returns it.
    """
    stamp = dataclasses.asdict(scoring.stamp) | {"fingerprint": scoring.checkpoint}
    return {"checkpoint": stamp, "config": shown}


def load_remotely(
    config: ServiceConfig, options: TagOptions, precision: Precision | None = None
) -> Scoring:
    """Load what embeddings are scored against, on a worker: the driver may be on a small head node.

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
    """Return everything that rows follow from."""
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
    """Return everything that the inputs of chunks follow from."""
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
    """Return everything that tags follow from besides the embeddings."""
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
    """Return a name that changes with everything that rows follow from, so that outputs of two
    configurations never mix.
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
) -> Pipeline:
    """Start the encoders and return the engine that feeds them."""
    plugin = config.siglip
    width = scoring.scored.bank.text_embeds.shape[1]
    batch = plan.batch_size
    patches = plugin.max_num_patches
    planned = plan.deployments["image_encoder"]
    model = Model(plugin.model_source, config.revision, plan.precision, batch, patches, width)
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
    scale = EncoderScale(
        planned.num_cpus, planned.num_gpus, planned.min_replicas, planned.max_replicas
    )
    nbytes = ImagePreparer(
        load_checkpoint(model.source, model.revision), limits, patches
    ).max_nbytes
    return Pipeline(
        reading,
        writing,
        scoring,
        EncoderPool(model, scale, Encoder),
        flow_of(options, planned, batch, nbytes),
    )


def flow_of(options: BatchOptions, planned: DeploymentPlan, batch: int, image_nbytes: int) -> Flow:
    """Return how much is under way at a time, on the CPUs that the encoders leave."""
    images = max(1, min(MAX_BLOCK_IMAGES, MAX_BLOCK_BYTES // image_nbytes, options.chunk_size))
    images = max(
        images // batch * batch, min(batch, images)
    )  # whole batches: the rest of a block fills none
    spare = max(0.5, cpus() - planned.num_cpus * planned.max_replicas)
    prepare_cpus = min(1.0, spare)
    return Flow(images, prepare_cpus, max(1, int(spare / prepare_cpus)) + 1)
