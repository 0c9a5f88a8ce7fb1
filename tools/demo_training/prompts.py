"""Token ids of the training labels, each under every template."""

import numpy as np
import numpy.typing as npt
import torch
from transformers import SiglipTokenizer

from tools.demo_training import checkpoint_files


class PromptSampler:
    """Token ids of labels, each under a template drawn at random."""

    def __init__(self, tokenizer: SiglipTokenizer, labels: list[str]) -> None:
        templates = checkpoint_files.TEMPLATES
        ids = tokenizer(
            [template.format(label=label) for label in labels for template in templates],
            padding="max_length",
            max_length=checkpoint_files.CONTEXT_LENGTH,
            truncation=True,
            return_tensors="pt",
        )["input_ids"]
        self.input_ids = ids.view(len(labels), len(templates), -1)

    def sample(self, rng: np.random.Generator, labels: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return (len(labels), L) token ids of labels named by index, each under a random template.

        Args:
            rng: Draws the templates.
            labels: Indices of the labels.
        """
        templates = rng.integers(self.input_ids.shape[1], size=len(labels))
        input_ids: torch.Tensor = self.input_ids[
            torch.from_numpy(labels), torch.from_numpy(templates)
        ]
        return input_ids

    def plain(self) -> torch.Tensor:
        """Return (T, L) token ids under the default template."""
        input_ids: torch.Tensor = self.input_ids[:, 0]
        return input_ids
