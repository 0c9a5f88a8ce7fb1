"""Trains the demo checkpoint: a SigLIP of 1.4 million parameters, on scenes of coloured shapes.

The loss is the sigmoid loss of the SigLIP paper over every pair of an image and a label of the
batch. Whether a pair matches is known from the scene, so no true pair is counted as a negative.

Four choices make this work at this size:

* The same loss also asks every patch which object covers it, with a projection that is discarded
  afterwards. Without a local loss (SigLIP 2 has others, https://arxiv.org/abs/2502.14786, section
  2.3) shapes are not learned in an hour.
* Combinations in `scenes.UNSEEN` are neither drawn nor named as one object.
* Pair labels (`red and star`: both are in the image, on one object or on two) are named for all
  combinations, so that the text tower learns what two words mean together.
* A third of the training objects have a colour without a name. Otherwise shapes are learned per
  colour, and the shapes of unseen combinations are not recognised (measured: 0.23 instead of 0.58
  mAP of the weaker attribute, after 1,500 steps).

Not here: what a scene is (`serve_app/demo/scenes.py`), the files beside the weights
(`checkpoint_files.py`, `release.py`).
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import SiglipModel

from serve_app.demo import scenes
from tools.demo_training import checkpoint_files, release
from tools.demo_training.dataset import Dataset, draw_dataset
from tools.demo_training.measure import measure, to_model_input
from tools.demo_training.model import PatchHead, build_model, sigmoid_loss
from tools.demo_training.prompts import PromptSampler

MEASURE_EVERY = 250
QUICK_SCENES = 600
EVALUATION_SEED = 1_000_003
EVALUATION_SCENES = 3_000
LOSS_DECAY = 0.98
"""Of the running mean of the loss that is printed."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    seed: int = 7
    train_scenes: int = 40_000
    unnamed_share: float = 0.35
    steps: int = 5_500
    batch_size: int = 64
    patch_loss_weight: float = 3.0
    pairs_per_step: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 250
    weight_decay: float = 0.05


class Training:
    """The state of one training run."""

    def __init__(self, schedule: Schedule, model: SiglipModel, data: Dataset) -> None:
        self._schedule = schedule
        self._model = model
        self._data = data
        self._rng = np.random.default_rng(schedule.seed)
        self._patch_head = PatchHead(model.config.vision_config.hidden_size)
        self._modules = torch.nn.ModuleList([model, self._patch_head])
        self._optimizer = torch.optim.AdamW(
            _parameter_groups(self._modules, schedule), lr=schedule.learning_rate, betas=(0.9, 0.98)
        )
        self._object_labels, self._pair_labels = np.split(
            np.arange(len(data.labels)), [data.object_truth.shape[-1]]
        )

    def run_step(self, step: int, prompts: PromptSampler) -> float:
        """Do one step and return the loss over whole images."""
        for group in self._optimizer.param_groups:
            group["lr"] = _learning_rate(self._schedule, step)

        schedule = self._schedule
        rows = self._rng.integers(len(self._data.pixels), size=schedule.batch_size)
        pairs = self._rng.choice(self._pair_labels, size=schedule.pairs_per_step, replace=False)
        labels = np.concatenate([self._object_labels, pairs])
        image_loss, patch_loss = self._losses(rows, labels, prompts)

        self._optimizer.zero_grad()
        loss = image_loss + schedule.patch_loss_weight * patch_loss
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._modules.parameters(), 1.0)
        self._optimizer.step()
        return image_loss.item()

    def _losses(
        self, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], prompts: PromptSampler
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss over whole images and the loss over their patches."""
        data = self._data
        output = self._model(
            pixel_values=to_model_input(data.pixels[rows]),
            input_ids=prompts.sample(self._rng, labels),
        )
        image_truth = data.truth[rows[:, None], labels]
        image_loss = sigmoid_loss(output.logits_per_image, torch.from_numpy(image_truth))

        patch_truth = data.object_truth[rows[:, None], data.patch_objects[rows]]
        patch_logits = self._patch_head(
            output.vision_model_output.last_hidden_state,
            output.text_embeds[: len(self._object_labels)],
        )
        return image_loss, sigmoid_loss(patch_logits, torch.from_numpy(patch_truth))


def train(schedule: Schedule, out: Path) -> dict[str, float]:
    """Train from scratch, write the checkpoint folder to `out` and return its held-out measures."""
    torch.manual_seed(schedule.seed)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = checkpoint_files.write_tokenizer(out)
    data = draw_dataset(schedule.seed, schedule.train_scenes, scenes.SEEN, schedule.unnamed_share)
    held_out = draw_dataset(EVALUATION_SEED, EVALUATION_SCENES, scenes.COMBINATIONS)

    prompts = PromptSampler(tokenizer, data.labels)
    model = build_model(len(tokenizer))
    training = Training(schedule, model, data)
    started_s = time.monotonic()
    running = 0.0
    for step in range(schedule.steps):
        loss = training.run_step(step, prompts)
        running = loss if step == 0 else LOSS_DECAY * running + (1 - LOSS_DECAY) * loss
        if (step + 1) % MEASURE_EVERY == 0:
            quick = measure(model, tokenizer, held_out, limit=QUICK_SCENES)
            seconds = time.monotonic() - started_s
            model.save_pretrained(out)
            line = f"step {step + 1} loss {running:.3f} {measures_line(quick)}"
            print(f"{line} after {seconds:.0f} s", flush=True)

    model.eval()
    measures = measure(model, tokenizer, held_out)
    model.save_pretrained(out)
    facts = {
        "schedule": asdict(schedule),
        "measures": measures,
        "evaluation_scenes": EVALUATION_SCENES,
    }
    (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    release.write_release(out)
    return measures


def measures_line(measures: dict[str, float]) -> str:
    """Return measures as one line."""
    return " ".join(f"{name} {value:.3f}" for name, value in measures.items())


def _parameter_groups(model: torch.nn.Module, schedule: Schedule) -> list[dict[str, object]]:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    return [
        {"params": matrices, "weight_decay": schedule.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _learning_rate(schedule: Schedule, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine decay."""
    if step < schedule.warmup_steps:
        return schedule.learning_rate * (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
