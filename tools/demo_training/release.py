"""The files beside the trained weights: reference vectors, sample images and the model card."""

import json
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from serve_app.demo import scenes
from serve_app.siglip.checkpoints import read_checkpoint
from serve_app.siglip.inputs import PreparedImage, collate
from serve_app.siglip.precision import Precision
from serve_app.siglip.preprocess import resize_square
from serve_app.towers.self_check import REFERENCE_FILE, REFERENCE_PROMPTS
from serve_app.towers.tower import ImageTower, TextTower
from tools.demo_training import checkpoint_files

SAMPLES_FOLDER = "samples"
SAMPLE_SIZE_PX = (640, 480)
REFERENCE_SCENES = 8
EXACT = Precision(device="cpu", dtype="float32", attention="sdpa")

_CARD = Template((Path(__file__).parent / "model_card.md").read_text(encoding="utf-8"))


def _thing(
    color: str, shape: str, x: float, y: float, radius: float, degrees: float = 0.0
) -> scenes.SceneObject:
    return scenes.SceneObject(color, shape, x, y, radius, float(np.radians(degrees)))


SAMPLES: tuple[scenes.Scene, ...] = (
    scenes.Scene((_thing("red", "circle", 0.5, 0.5, 0.27),), 11),
    scenes.Scene((_thing("white", "cross", 0.4, 0.55, 0.26, 8),), 12),
    scenes.Scene(
        (
            _thing("blue", "square", 0.3, 0.4, 0.26, 5),
            _thing("yellow", "star", 0.7, 0.62, 0.26, -6),
        ),
        13,
    ),
    scenes.Scene(
        (_thing("green", "triangle", 0.3, 0.6, 0.27), _thing("purple", "cross", 0.7, 0.4, 0.26)), 14
    ),
    scenes.Scene(
        (
            _thing("white", "heart", 0.26, 0.5, 0.23, -10),
            _thing("red", "triangle", 0.73, 0.5, 0.24, 10),
        ),
        16,
    ),
    scenes.Scene(
        (
            _thing("yellow", "heart", 0.24, 0.33, 0.22),
            _thing("black", "square", 0.74, 0.3, 0.22, 8),
            _thing("blue", "circle", 0.5, 0.74, 0.22),
        ),
        21,
    ),
)
"""Scenes arranged by hand, of combinations seen in training that the model tags correctly."""


def write_release(folder: Path) -> None:
    """Write everything but weights and tokenizer into a trained folder, and samples beside it."""
    checkpoint_files.write_processor(folder)
    write_samples(folder.parent / SAMPLES_FOLDER)
    write_reference_vectors(folder)
    write_model_card(folder)


def write_samples(folder: Path) -> None:
    """Draw the sample images, each named by what it shows."""
    folder.mkdir(exist_ok=True)
    for scene in SAMPLES:
        scenes.draw(scene, *SAMPLE_SIZE_PX).save(folder / f"{scene.name}.jpg", quality=90)


def write_reference_vectors(folder: Path) -> None:
    """Store inputs with their embeddings, which the self-check compares at every start."""
    drawn = [
        scenes.draw(scene, *SAMPLE_SIZE_PX)
        for scene in scenes.sample_scenes(5, REFERENCE_SCENES, scenes.COMBINATIONS)
    ]
    size = checkpoint_files.IMAGE_SIZE_PX
    resample = checkpoint_files.RESAMPLE
    batch = collate([PreparedImage(resize_square(image, size, resample)) for image in drawn])
    prompts = [
        template.format(label=label)
        for template in checkpoint_files.TEMPLATES[:2]
        for label in ("red", "Star", "blue circle", "green heart")
    ]
    checkpoint = read_checkpoint(folder)
    vectors: dict[str, np.ndarray[Any, Any]] = {
        "pixel_values": batch.pixel_values,
        "image_embeds": ImageTower(checkpoint, EXACT).encode(batch),
        "text_embeds": TextTower(checkpoint, EXACT).encode(prompts),
    }
    save_file(vectors, folder / REFERENCE_FILE)
    (folder / REFERENCE_PROMPTS).write_text("\n".join(prompts) + "\n", encoding="utf-8")


def write_model_card(folder: Path) -> None:
    """Write the README of the checkpoint from what training measured."""
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    facts = training["schedule"] | {
        name: f"{value:.2f}" for name, value in training["measures"].items()
    }
    facts["train_scenes"] = f"{facts['train_scenes']:,}"
    facts["unseen"] = ", ".join(scenes.combination_labels(scenes.UNSEEN))
    facts["evaluation_scenes"] = f"{training['evaluation_scenes']:,}"
    (folder / "README.md").write_text(_CARD.substitute(facts), encoding="utf-8")
