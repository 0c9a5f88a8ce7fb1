"""What 8bit and 4bit cost on the demo checkpoint, on the CPU with the real bitsandbytes: cosine to
float32, and mAP on held-out scenes.
"""

import functools

import numpy as np
import pytest

from serve_app.config.plugin import DEMO_CHECKPOINT
from serve_app.demo import scenes
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.inputs import FloatArray, PreparedImage, collate
from serve_app.siglip.precision import Precision
from serve_app.siglip.preprocess import resize_square
from serve_app.siglip.scoring import pair_logits
from serve_app.siglip.weights import read_similarity_head
from serve_app.tagging.evaluation import mean_average_precision
from serve_app.tagging.prompts import DEFAULT_TEMPLATE, render_prompts
from serve_app.towers.tower import ImageTower, TextTower

SCENES = 240
BATCH = 48
SEED = 2_024
LEAST_COSINE = {"8bit": 0.999, "4bit": 0.95}
MOST_LOST = {"8bit": 0.005, "4bit": 0.05}
"""Of the mean average precision of float32; measured once: see bench/LOG.md."""


@functools.cache
def held_out() -> tuple[list[scenes.Scene], list[PreparedImage]]:
    """Return scenes that training has not drawn, and their pictures."""
    checkpoint = load_checkpoint(str(DEMO_CHECKPOINT))
    drawn = list(scenes.sample_scenes(SEED, SCENES, scenes.SEEN))
    side = checkpoint.image_size_px
    assert side is not None
    return drawn, [
        PreparedImage(resize_square(scenes.draw(scene, 96, 96), side, checkpoint.resample, None))
        for scene in drawn
    ]


@functools.cache
def embeddings(dtype: str, quantization: str) -> tuple[FloatArray, FloatArray]:
    """Return the embeddings of the held-out pictures and of the demo's labels."""
    checkpoint = load_checkpoint(str(DEMO_CHECKPOINT))
    precision = Precision("cpu", dtype, "sdpa", quantization)
    tower = ImageTower(checkpoint, precision)
    text = TextTower(checkpoint, precision)
    pictures = held_out()[1]
    images = [
        tower.encode(collate(pictures[start : start + BATCH])) for start in range(0, SCENES, BATCH)
    ]
    return np.concatenate(images), text.encode(render_prompts(tuple(labels()), (DEFAULT_TEMPLATE,)))


def labels() -> list[str]:
    return scenes.attribute_labels()


def precision_of(dtype: str, quantization: str) -> float:
    """Return the mAP of the colours and shapes."""
    images, texts = embeddings(dtype, quantization)
    head = read_similarity_head(load_checkpoint(str(DEMO_CHECKPOINT)).folder)
    truth = np.array(
        [[label in scenes.labels_in(scene) for label in labels()] for scene in held_out()[0]]
    )
    return mean_average_precision(
        pair_logits(images, texts, head.logit_scale, head.logit_bias), truth
    )


@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [("float32", "8bit"), ("float16", "8bit"), ("float32", "4bit"), ("bfloat16", "4bit")],
)
def test_quantised_towers_are_close_to_float32(dtype: str, quantization: str) -> None:
    """Each picture's and each label's embedding against that of float32, and what the tags lose by
    it.
    """
    exact = embeddings("float32", "none")
    quantised = embeddings(dtype, quantization)
    for left, right in zip(exact, quantised, strict=True):
        cosines = (left * right).sum(axis=1)
        assert cosines.min() >= LEAST_COSINE[quantization]
        assert cosines.max() < 1 - 1e-9  # it was quantised
    lost = precision_of("float32", "none") - precision_of(dtype, quantization)
    print(f"{dtype} {quantization}: least cosine {cosines.min():.5f}, mAP lost {lost:.4f}")
    assert lost <= MOST_LOST[quantization]
