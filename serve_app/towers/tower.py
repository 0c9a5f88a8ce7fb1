"""The two towers: from batches of images, or prompts, to embeddings.

Each tower is loaded alone from the whole checkpoint: for siglip2-so400m the image tower is 817 MiB
of 2,167 in float16. Outputs are float32 with unit norm whatever the tower runs in.

Not here: loading a tower from its files (`loading.py`), token ids (`tokenizer.py`), and scores
(`siglip/scoring.py`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import Siglip2TextModel, Siglip2VisionModel, SiglipTextModel, SiglipVisionModel

from serve_app.siglip.checkpoints import Checkpoint, Family
from serve_app.siglip.inputs import FloatArray, ImageBatch
from serve_app.siglip.precision import Precision
from serve_app.siglip.scoring import unit_norm
from serve_app.towers.loading import load_tower
from serve_app.towers.runtime import DTYPES, gpu_memory_bytes
from serve_app.towers.tokenizer import SiglipTextInputs
from serve_app.towers.transfer import Fetch, Transfer

TEXT_BATCH = 64
"""Prompts per forward pass of the text tower."""


class _Tower:
    """What both towers know of themselves: their checkpoint, and what they run as."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision) -> None:
        self.checkpoint = checkpoint
        self.runtime = precision

    def gpu_memory_bytes(self) -> dict[str, float]:
        """Return the GPU memory of this process in bytes, by kind; empty on another device."""
        return gpu_memory_bytes(self.runtime.device)


class ImageTower(_Tower):
    """The vision tower of a checkpoint, on one device."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision = Precision()) -> None:
        super().__init__(checkpoint, precision)
        is_naflex = checkpoint.family is Family.NAFLEX
        kind = Siglip2VisionModel if is_naflex else SiglipVisionModel
        self._model = load_tower(kind, checkpoint, precision)
        self._transfer = Transfer(self.runtime.device)
        # rescaling and normalising in one multiply and one add
        self._factor = torch.tensor(
            checkpoint.pixel_scale, dtype=torch.float32, device=self.runtime.device
        )
        self._offset = torch.tensor(
            checkpoint.pixel_offset, dtype=torch.float32, device=self.runtime.device
        )

    @property
    def is_asynchronous(self) -> bool:
        """Whether `encode_later` returns before the device has computed the embeddings."""
        return self._transfer.is_asynchronous

    def encode(self, batch: ImageBatch) -> FloatArray:
        """Return image_embeds (B, D) float32, unit norm.

        A row of an image that the model cannot represent may hold NaN; `encode` does not hide it.
        """
        return self.encode_later(batch)()

    @torch.inference_mode()
    def encode_later(self, batch: ImageBatch) -> Fetch:
        """Start to encode a batch; the result waits for its embeddings and returns them.

        On a GPU the next batch can be started before this one is fetched. An error of the device
        may be raised by either call.
        """
        output = self._model(**self._inputs(batch)).pooler_output
        fetch = self._transfer.fetch_later(output.float())
        return lambda: unit_norm(fetch())

    def _inputs(self, batch: ImageBatch) -> dict[str, torch.Tensor]:
        dtype = DTYPES[self.runtime.dtype]
        pixels = self._transfer.to_device(batch.pixel_values)
        if batch.spatial_shapes is None or batch.pixel_attention_mask is None:
            channels_last = pixels.float() * self._factor + self._offset
            return {"pixel_values": channels_last.permute(0, 3, 1, 2).contiguous().to(dtype)}
        mask = self._transfer.to_device(batch.pixel_attention_mask)
        repeat = pixels.shape[-1] // 3
        patches = pixels.float() * self._factor.repeat(repeat) + self._offset.repeat(repeat)
        # padding is masked out of attention and pooling; zeros keep the tensor equal to the
        # reference processor's
        patches = (patches * mask[..., None]).to(dtype)
        return {
            "pixel_values": patches,
            "pixel_attention_mask": mask,
            "spatial_shapes": torch.tensor(batch.spatial_shapes),
        }


class TextTower(_Tower):
    """The text tower of a checkpoint with its tokenizer, on one device."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision = Precision()) -> None:
        super().__init__(checkpoint, precision)
        self.text_inputs = SiglipTextInputs(checkpoint)
        is_naflex = checkpoint.family is Family.NAFLEX
        kind = Siglip2TextModel if is_naflex else SiglipTextModel
        self._model = load_tower(kind, checkpoint, precision)

    def encode(self, prompts: Sequence[str]) -> FloatArray:
        """Return text_embeds (n, D) float32, unit norm, of finished prompts.

        Prompts of the same token ids are encoded once, so that their embeddings are exactly equal.
        """
        unique, places = np.unique(self.text_inputs.input_ids(prompts), axis=0, return_inverse=True)
        return self.encode_ids(unique)[places.reshape(-1)]

    @torch.inference_mode()
    def encode_ids(self, input_ids: np.ndarray[Any, np.dtype[np.int64]]) -> FloatArray:
        """Return text_embeds (n, D) float32, unit norm, of token ids (n, L).

        There is no attention mask, as in training.
        """
        parts = [
            input_ids[start : start + TEXT_BATCH] for start in range(0, len(input_ids), TEXT_BATCH)
        ]
        outputs = [
            self._model(input_ids=torch.tensor(part, device=self.runtime.device)).pooler_output
            for part in parts
        ]
        return unit_norm(torch.cat(outputs).float().cpu().numpy())
