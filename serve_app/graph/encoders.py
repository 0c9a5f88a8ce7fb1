"""The model replicas: one deployment per tower, which returns embeddings and never scores.

A replica's constructor returns only after its tower is loaded, warmed up and has passed its
self-check, so Serve sends no request before that. Forward passes run in threads, so that the event
loop stays free, for example for health checks.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from ray import serve

from serve_app.graph import metrics
from serve_app.graph.autoscaling import PER_ENCODER
from serve_app.graph.forward_passes import MAX_STARTED, ForwardPasses
from serve_app.graph.messages import EncodeReply, EncoderState
from serve_app.graph.microbatch import BatchLimits, MicroBatcher
from serve_app.graph.rates import Rates
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.inputs import FloatArray, ImageBatch
from serve_app.siglip.outcomes import EncodedImages
from serve_app.siglip.precision import Precision
from serve_app.telemetry.logs import configure_replica_logging

if TYPE_CHECKING:
    from serve_app.towers.tower import ImageTower, TextTower

MERGE_WAIT_S = 0.0
"""Serve's batcher does not wait, because a `MicroBatcher` has already filled the batch."""
MAX_WAITING_BYTES = 2**30
MAX_FAILURES_IN_A_ROW = 8
"""Consecutive failed forward passes before the replica reports itself unhealthy and Serve replaces
it."""


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """Settings of an encoder replica.

    Attributes:
        model: Folder or hub id.
        revision: Revision of a hub id.
        max_num_patches: Number of patches of the largest NaFlex image.
        precision: Device, dtype, attention and quantization of the tower.
        batch_size: Maximum number of items in one forward pass.
        num_threads: Number of CPU threads of a forward pass.
        gpu_share: Fraction of a GPU that this replica has; its GPU memory is capped accordingly.
        model_shown: Name of the model in metrics.
    """

    model: str
    revision: str | None
    max_num_patches: int
    precision: Precision
    batch_size: int
    num_threads: int
    gpu_share: float = 0.0
    model_shown: str = ""


class _Replica:
    """Base of both encoders: their metrics and health."""

    def __init__(self, spec: EncoderSpec) -> None:
        configure_replica_logging()
        self._batches = 0
        self._items = 0
        self._loads = 0
        self._failures_in_a_row = 0
        self._memory_bytes: Callable[[], dict[str, float]] = dict
        self._model_shown = spec.model_shown
        self._rates = Rates(time.monotonic())
        self._full_batch = spec.batch_size
        self._batch_size = metrics.encoder_batch_size()
        self._batch_seconds = metrics.encoder_batch_seconds()
        self._model_loads = metrics.model_loads()
        self._gpu_memory = metrics.gpu_memory()
        self._counted_batches = metrics.encoder_batches()
        self._counted_items = metrics.encoder_items()
        self._counted_seconds = metrics.encoder_busy_seconds()
        self._model_info = metrics.model_info()
        self._model_tags = dict[str, str]()

    def _loaded(self, tower: "ImageTower | TextTower") -> None:
        self._loads += 1
        self._model_loads.inc()
        self._memory_bytes = tower.gpu_memory_bytes
        self._model_tags = metrics.model_tags(self._model_shown, tower.checkpoint, tower.runtime)

    def _show_model_and_memory(self) -> None:
        if self._model_tags:
            self._model_info.set(1, tags=self._model_tags)
        for kind, size in self._memory_bytes().items():
            self._gpu_memory.set(size, tags={"kind": kind})

    async def check_health(self) -> None:
        """Raise if the model has stopped working, for example after a sticky CUDA error.

        Serve then replaces this replica.
        """
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise RuntimeError(f"{self._failures_in_a_row} consecutive forward passes failed")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Report the load to `graph/autoscaling.py`; Serve calls this a few times a second."""
        self._show_model_and_memory()
        _, per_busy_second = self._rates.read(time.monotonic())
        return {PER_ENCODER: per_busy_second} if per_busy_second else {}

    def _count(self, items: int, seconds: float, any_succeeded: bool = True) -> None:
        self._failures_in_a_row = 0 if any_succeeded else self._failures_in_a_row + 1
        self._rates.work(items, seconds, full=2 * items >= self._full_batch)
        self._batches += 1
        self._items += items
        self._counted_batches.inc()
        self._counted_items.inc(items)
        self._counted_seconds.inc(seconds)
        self._batch_size.observe(items)
        self._batch_seconds.observe(seconds)


def count_images(batches: Sequence[ImageBatch]) -> int:
    """Return the number of images in micro-batches, by which Serve's batcher limits a batch."""
    return sum(len(batch) for batch in batches)


def _tower_starting() -> ModuleType:
    # imported here, because the builder imports this module too, and importing torch takes seconds
    from serve_app.towers import starting

    return starting


class ImageEncoder(_Replica):
    """Deployment of the vision tower, with a queue of micro-batches."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        starting = _tower_starting()
        checkpoint = load_checkpoint(spec.model, spec.revision)
        self._tower: ImageTower = starting.start_image_tower(
            checkpoint, spec.precision, spec.num_threads, spec.gpu_share
        )
        starting.warm_up(self._tower, spec.max_num_patches, spec.batch_size)
        self._loaded(self._tower)
        self.merged.set_max_batch_size(spec.batch_size)
        limits = BatchLimits(spec.batch_size, MAX_WAITING_BYTES, MAX_WAITING_BYTES)
        self._batcher = MicroBatcher[ImageBatch, EncodedImages](self._merge, limits, wait_s=0.0)
        width = checkpoint.embedding_width
        self._forward_passes = ForwardPasses(self._tower, width, self._count)

    async def encode(self, batch: ImageBatch) -> EncodeReply:
        """Encode one micro-batch, together with waiting micro-batches of other Preprocessors."""
        images = await self._batcher.submit(batch, batch.pixel_values.nbytes, len(batch))
        return EncodeReply(images, serve.get_replica_context().world_size)

    async def _merge(self, batches: Sequence[ImageBatch]) -> Sequence[EncodedImages | Exception]:
        """Pass micro-batches to Serve's batcher together, so that it merges them into one batch."""
        merged: list[EncodedImages] = await asyncio.gather(
            *[self.merged(batch) for batch in batches]
        )
        return merged

    @serve.batch(  # type: ignore[untyped-decorator]
        max_batch_size=1,
        batch_wait_timeout_s=MERGE_WAIT_S,
        batch_size_fn=count_images,
        max_concurrent_batches=MAX_STARTED,
    )
    async def merged(self, batches: list[ImageBatch]) -> list[EncodedImages]:
        """Encode the micro-batches that Serve gathered, in one forward pass."""
        return await self.encode_together(batches)

    async def encode_together(self, batches: Sequence[ImageBatch]) -> list[EncodedImages]:
        """Encode several micro-batches as one, and return the embeddings of each."""
        encoded = await self._forward_passes.encode(batches)
        ends = np.cumsum([len(batch) for batch in batches]).tolist()
        return [
            encoded.part(end - len(batch), end) for batch, end in zip(batches, ends, strict=True)
        ]

    async def state(self) -> EncoderState:
        """Return what this replica runs and how much it has done."""
        replica = serve.get_replica_context().replica_tag
        return EncoderState(self._tower.runtime, replica, self._loads, self._batches, self._items)


class TextEncoder(_Replica):
    """Deployment of the text tower, which encodes prompts in batches of the model's size."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        checkpoint = load_checkpoint(spec.model, spec.revision)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._tower: TextTower = _tower_starting().start_text_tower(
            checkpoint, spec.precision, spec.num_threads, spec.gpu_share
        )
        self._loaded(self._tower)
        self.merged.set_max_batch_size(spec.batch_size)

    async def encode(self, prompts: list[str], refuse_cut: bool = False) -> FloatArray:
        """Return text_embeds (n, D) float32, unit norm, of rendered prompts.

        Prompts of waiting calls are encoded together.

        Raises:
            InvalidRequest: `refuse_cut` is set, and a prompt has more tokens than the tower reads.
        """
        if refuse_cut:
            self._tower.text_inputs.check_whole(prompts)
        embeds: FloatArray = await self.merged(prompts)
        return embeds

    async def digests(self, prompts: list[str]) -> list[bytes]:
        """Return a digest of each prompt's token ids; see `SiglipTextInputs.digests`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._tower.text_inputs.digests, prompts)

    @serve.batch(  # type: ignore[untyped-decorator]
        max_batch_size=64, batch_wait_timeout_s=MERGE_WAIT_S
    )
    async def merged(self, requests: list[list[str]]) -> list[FloatArray]:
        """Encode the prompts of the calls that Serve gathered."""
        return await self.encode_together(requests)

    async def encode_together(self, requests: Sequence[list[str]]) -> list[FloatArray]:
        """Encode the distinct prompts of several calls, and return the rows of each call."""
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, self._forward, requests
        )

    def _forward(self, requests: Sequence[list[str]]) -> list[FloatArray]:
        started = time.perf_counter()
        unique = list(dict.fromkeys(prompt for prompts in requests for prompt in prompts))
        embeds = self._tower.encode(unique)
        self._count(len(unique), time.perf_counter() - started)
        row = {prompt: i for i, prompt in enumerate(unique)}
        return [embeds[[row[prompt] for prompt in prompts]] for prompts in requests]

    async def state(self) -> EncoderState:
        """Return what this replica runs and how much it has done."""
        replica = serve.get_replica_context().replica_tag
        return EncoderState(self._tower.runtime, replica, self._loads, self._batches, self._items)
