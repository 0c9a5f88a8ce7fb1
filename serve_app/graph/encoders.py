"""The model replicas: one deployment for each tower, which returns embeddings and never scores.

A replica's constructor ends only when its tower is loaded, warmed up and has passed its self-check,
so Serve sends it nothing before. Forward passes run in one executor thread: the event loop, and
with it the health check, stays free.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from ray import serve

from serve_app.graph import metrics
from serve_app.graph.autoscaling import PER_ENCODER
from serve_app.graph.messages import EncodeReply, EncoderState
from serve_app.graph.microbatch import BatchLimits, MicroBatcher
from serve_app.graph.rates import Rates
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.inputs import FloatArray, ImageBatch, collate, concatenate
from serve_app.siglip.outcomes import EncodedImages, encode_apart
from serve_app.siglip.precision import Precision
from serve_app.telemetry.logs import configure_replica_logging

if TYPE_CHECKING:
    from serve_app.towers.tower import ImageTower, TextTower

MERGE_WAIT_S = 0.0
"""Serve's batcher takes what is there: what there is to take is decided before it, late, by a
`MicroBatcher`."""
MAX_WAITING_BYTES = 2**30
MAX_FAILURES_IN_A_ROW = 8
"""Forward passes of which not one item succeeded, after which the replica says that it is ill and
Serve replaces it."""


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What an encoder replica loads and how it runs.

    Attributes:
        model: Folder or hub id.
        revision: Of a hub id.
        max_num_patches: Of the largest NaFlex image.
        precision: Device, dtype, attention and quantisation asked for.
        batch_size: Most items in one forward pass.
        num_threads: Threads of a forward pass on the CPU.
        gpu_share: Part of a GPU that this replica was given; its memory is capped to that part.
        model_shown: What the model is called where others see it.
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
    """What both encoders have in common: one thread for the model, and counts."""

    def __init__(self, spec: EncoderSpec) -> None:
        import torch  # here and not above: the builder imports this module, and must stay light

        from serve_app.towers.runtime import cap_gpu_memory

        configure_replica_logging()
        torch.set_num_threads(spec.num_threads)
        cap_gpu_memory(spec.gpu_share)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._batches = self._items = self._loads = self._failures_in_a_row = 0
        self._device = "cpu"
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
        self._device = tower.runtime.device
        self._model_tags = metrics.model_tags(self._model_shown, tower.checkpoint, tower.runtime)

    def _show_model_and_memory(self) -> None:
        from serve_app.towers.runtime import gpu_memory_bytes

        if self._model_tags:
            self._model_info.set(1, tags=self._model_tags)
        for kind, size in gpu_memory_bytes(self._device).items():
            self._gpu_memory.set(size, tags={"kind": kind})

    async def check_health(self) -> None:
        """Tell Serve to replace this replica when the model gives nothing any more, as after a
        sticky CUDA error.
        """
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise RuntimeError(f"{self._failures_in_a_row} forward passes in a row failed")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Serve what `graph/autoscaling.py` goes by; Serve calls this a few times a second."""
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
    """Return the images in some micro-batches: what Serve's batcher fills up to the batch size."""
    return sum(len(batch) for batch in batches)


class ImageEncoder(_Replica):
    """The vision tower behind a queue of micro-batches."""

    def __init__(self, spec: EncoderSpec) -> None:
        from serve_app.towers.self_check import check_image_tower, probe_images
        from serve_app.towers.tower import ImageTower

        super().__init__(spec)
        self._tower = ImageTower(load_checkpoint(spec.model, spec.revision), spec.precision)
        check_image_tower(self._tower)
        full = (probe_images(self._tower.checkpoint, spec.max_num_patches) * spec.batch_size)[
            : spec.batch_size
        ]
        self._tower.encode(collate(full))  # the largest batch claims its memory now
        self._loaded(self._tower)
        self.merged.set_max_batch_size(spec.batch_size)
        limits = BatchLimits(spec.batch_size, MAX_WAITING_BYTES, MAX_WAITING_BYTES)
        self._late = MicroBatcher[ImageBatch, EncodedImages](self._merge, limits, wait_s=0.0)

    async def encode(self, batch: ImageBatch) -> EncodeReply:
        """Encode one micro-batch, together with others of other Preprocessors that wait."""
        images = await self._late.submit(batch, batch.pixel_values.nbytes, len(batch))
        return EncodeReply(images, serve.get_replica_context().world_size)

    async def _merge(self, batches: Sequence[ImageBatch]) -> Sequence[EncodedImages | Exception]:
        """Hand micro-batches to Serve's batcher at the same moment, so that it takes them as
        one.
        """
        merged: list[EncodedImages] = await asyncio.gather(
            *[self.merged(batch) for batch in batches]
        )
        return merged

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=MERGE_WAIT_S, batch_size_fn=count_images)  # type: ignore[untyped-decorator]
    async def merged(self, batches: list[ImageBatch]) -> list[EncodedImages]:
        """Encode the micro-batches that Serve gathered in one forward pass."""
        return await self.encode_together(batches)

    async def encode_together(self, batches: Sequence[ImageBatch]) -> list[EncodedImages]:
        """Encode several micro-batches as one and hand each its own part."""
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, self._forward, batches
        )

    def _forward(self, batches: Sequence[ImageBatch]) -> list[EncodedImages]:
        started = time.perf_counter()
        encoded = encode_apart(
            self._tower.encode, concatenate(batches), self._tower.checkpoint.embedding_width
        )
        self._count(
            len(encoded),
            time.perf_counter() - started,
            any(error is None for error in encoded.errors),
        )
        ends = np.cumsum([len(batch) for batch in batches]).tolist()
        return [
            encoded.part(end - len(batch), end) for batch, end in zip(batches, ends, strict=True)
        ]

    async def state(self) -> EncoderState:
        """Say what runs here and how much it has done."""
        replica = serve.get_replica_context().replica_tag
        return EncoderState(self._tower.runtime, replica, self._loads, self._batches, self._items)


class TextEncoder(_Replica):
    """The text tower: prompts to unit embeddings, cut into batches of the model's size."""

    def __init__(self, spec: EncoderSpec) -> None:
        from serve_app.towers.self_check import check_text_tower
        from serve_app.towers.tower import TextTower

        super().__init__(spec)
        self._tower = TextTower(load_checkpoint(spec.model, spec.revision), spec.precision)
        check_text_tower(self._tower)
        self._loaded(self._tower)
        self.merged.set_max_batch_size(spec.batch_size)

    async def encode(self, prompts: list[str], refuse_cut: bool = False) -> FloatArray:
        """Return text_embeds (n, D) float32, unit norm, of finished prompts, encoded together with
        others that wait.

        Raises:
            InvalidRequest: `refuse_cut`, and a prompt has more tokens than the tower reads.
        """
        if refuse_cut:
            self._tower.text_inputs.check_whole(prompts)
        embeds: FloatArray = await self.merged(prompts)
        return embeds

    async def digests(self, prompts: list[str]) -> list[bytes]:
        """Return a digest of each prompt's token ids; see `SiglipTextInputs.digests`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._tower.text_inputs.digests, prompts)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=MERGE_WAIT_S)  # type: ignore[untyped-decorator]
    async def merged(self, requests: list[list[str]]) -> list[FloatArray]:
        """Encode the prompts of the calls that Serve gathered."""
        return await self.encode_together(requests)

    async def encode_together(self, requests: Sequence[list[str]]) -> list[FloatArray]:
        """Encode several calls' prompts, the same prompt once, and hand each call its own."""
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, self._forward, requests
        )

    def _forward(self, requests: Sequence[list[str]]) -> list[FloatArray]:
        started = time.perf_counter()
        unique = list(dict.fromkeys(prompt for prompts in requests for prompt in prompts))
        embeds = self._tower.encode(unique)
        self._count(len(unique), time.perf_counter() - started)
        row = {prompt: at for at, prompt in enumerate(unique)}
        return [embeds[[row[prompt] for prompt in prompts]] for prompts in requests]

    async def state(self) -> EncoderState:
        """Say what runs here and how much it has done."""
        replica = serve.get_replica_context().replica_tag
        return EncoderState(self._tower.runtime, replica, self._loads, self._batches, self._items)
