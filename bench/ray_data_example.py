"""The image batch inference example of Ray Data's documentation, with SigLIP.

Batch jobs are compared with it: `read_images`, a class with a transformers model and its processor,
`map_batches` with one actor, `write_parquet`. It does less work than the example: labels are
encoded once and not with every batch, and every image can be read.
"""

from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch


class SiglipOnRayData:
    """Adds the labels above a threshold to batches of decoded images."""

    def __init__(self, checkpoint: str, labels: list[str], dtype: str) -> None:
        from transformers import AutoModel, AutoProcessor  # only in the actor: it takes seconds

        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.model = AutoModel.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()
        self.labels = labels
        prompts = [f"This is a photo of {label}." for label in labels]
        with torch.inference_mode():
            inputs = self.processor(text=prompts, padding="max_length", return_tensors="pt")
            embeds = self.model.get_text_features(**inputs).pooler_output
            self.text = embeds / embeds.norm(dim=-1, keepdim=True)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return paths and labels of a batch."""
        with torch.inference_mode():
            inputs = self.processor(images=list(batch["image"]), return_tensors="pt")
            embeds = self.model.get_image_features(
                pixel_values=inputs["pixel_values"].to(self.model.dtype)
            ).pooler_output
            embeds = embeds / embeds.norm(dim=-1, keepdim=True)
            logits = embeds @ self.text.T * self.model.logit_scale.exp() + self.model.logit_bias
            scores = torch.sigmoid(logits.float()).numpy()
        names = [
            [label for label, score in zip(self.labels, row, strict=True) if score > 0.01]
            for row in scores
        ]
        return {"path": batch["path"], "tags": np.array([", ".join(found) for found in names])}


def tag_on_ray_data(
    source: Path, output: Path, checkpoint: Path, labels: list[str], dtype: str, batch_size: int
) -> None:
    """Tag a folder of images."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    images = ray.data.read_images(str(source), include_paths=True, mode="RGB")
    tagged = images.map_batches(
        SiglipOnRayData,
        fn_constructor_args=[str(checkpoint), labels, dtype],
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
    )
    tagged.write_parquet(str(output))
