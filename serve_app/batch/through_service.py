"""A job that a running service does over HTTP, without a second model and without a cluster.

The vocabulary of the service must not change during the job: all rows of a folder are made with the
same one.

Not here: sending the images (`service_engine.py`).
"""

import asyncio
from functools import partial
from typing import Any, NamedTuple

from serve_app.batch.job import Job, JobResult
from serve_app.batch.options import BatchOptions
from serve_app.batch.output_files import Writing
from serve_app.batch.rows import Stamp
from serve_app.batch.service_engine import ServiceEngine, TaggingService
from serve_app.batch.tagging_job import folder_name, input_identity
from serve_app.batch.urls import joined
from serve_app.errors import ConfigError


class _Served(NamedTuple):
    """What a service tags with.

    Attributes:
        stamp: What rows will say.
        facts: Everything that determines the rows, as far as the service reports it.
        width: Width of the embeddings; 0 if the job does not store them.
    """

    stamp: Stamp
    facts: dict[str, Any]
    width: int


def run_service_job(service: TaggingService, options: BatchOptions) -> JobResult:
    """Tag everything in INPUT by a service; continue where an earlier run of the same job ended.

    Args:
        service: Which service.
        options: What goes in and out.

    Raises:
        TaggerError: The service does not respond or tags differently than before; or see `run_job`.
    """
    options.check()
    if options.file_bytes is not None:
        raise ConfigError("--file-mb does not go with --through-service; give --chunk-size.")

    served = asyncio.run(_read_served(service, options))
    stamp = served.stamp
    identity = {
        **input_identity(options),
        "rows": [options.output_format, options.embeddings, options.quality],
        "service": served.facts,
    }
    folder = joined(options.output, folder_name(stamp.checkpoint, identity))
    writing = Writing.into(folder, options)
    recorded = {
        "checkpoint": {"checkpoint": stamp.checkpoint, "revision": stamp.revision},
        "service": served.facts,
    }
    start_engine = partial(ServiceEngine, service, options, writing, stamp, served.width)
    return Job(options, writing, recorded, start_engine).run()


async def _read_served(service: TaggingService, options: BatchOptions) -> _Served:
    """Ask the service what it tags with."""
    async with service.client() as client:
        card = await client.model()
        name = options.vocabulary or card.vocabulary
        known = {found.name: found for found in await client.vocabularies()}
        if name not in known:
            raise ConfigError(f"the service has no vocabulary {name}; it has {', '.join(known)}.")
        vocabulary = await client.vocabulary(name)
        width = len((await client.embed(["an image"]))[0]) if options.embeddings else 0

    facts = {
        "model": card.model,
        "revision": card.revision,
        "dtype": card.dtype,
        "quantization": card.quantization,
        "max_num_patches": card.max_num_patches,
        "confidence_threshold": known[name].confidence_threshold,
        "vocabulary": vocabulary.model_dump(mode="json", exclude={"default"}),
    }
    return _Served(Stamp(card.model, card.revision, vocabulary.fingerprint), facts, width)
