"""How well a model in training tags scenes that it has not seen."""

import numpy as np
import numpy.typing as npt
import torch
from transformers import SiglipModel, SiglipTokenizer

from serve_app.demo import scenes
from serve_app.tagging.evaluation import mean_average_precision
from tools.demo_training.dataset import Dataset
from tools.demo_training.prompts import PromptSampler

IMAGES_PER_PASS = 200


def to_model_input(pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Return (B, 3, H, W) float32 in [-1, 1] for (B, H, W, 3) uint8."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0


@torch.inference_mode()
def measure(
    model: SiglipModel, tokenizer: SiglipTokenizer, data: Dataset, limit: int | None = None
) -> dict[str, float]:
    """Return mAP on attributes, on combinations seen in training and on combinations never seen."""
    pixels = data.pixels[:limit]
    truth = data.truth[:limit]
    input_ids = PromptSampler(tokenizer, data.labels).plain()

    passes = np.array_split(pixels, max(1, len(pixels) // IMAGES_PER_PASS))
    logits = torch.cat(
        [
            model(pixel_values=to_model_input(part), input_ids=input_ids).logits_per_image
            for part in passes
        ]
    ).numpy()

    groups = {
        "attributes": scenes.attribute_labels(),
        "seen_combinations": scenes.combination_labels(scenes.SEEN),
        "unseen_combinations": scenes.combination_labels(scenes.UNSEEN),
    }
    measures: dict[str, float] = {}
    for name, labels in groups.items():
        columns = [data.labels.index(label) for label in labels]
        measures[name] = mean_average_precision(logits[:, columns], truth[:, columns])
    return measures
