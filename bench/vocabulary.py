"""Measures the cost of many labels: `python -m bench.vocabulary`.

It times selection alone, at 10,000 tags × 32 images on one core. Then it tags an image with 10 and
with 10,000 registered labels on a base-size checkpoint, and compares the transformers pipeline,
which encodes every label again for every image.

The embeddings of the 10,000 labels are random unit rows in a stored bank: encoding them would take
half an hour and would not change the measurements.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import pipeline

from bench.base_checkpoint import build_base_checkpoint
from serve_app.config.service import ServiceConfig, parse_config
from serve_app.demo import scenes
from serve_app.images.decoding import decode_image
from serve_app.images.limits import ImageLimits
from serve_app.pipeline.local_scorer import LocalScorer
from serve_app.pipeline.local_tagger import LocalTagger
from serve_app.tagging.calibration import Calibration, Fit
from serve_app.tagging.selection import SelectionRule, select_tags
from serve_app.tagging.tag_bank import TagBank, row_keys
from serve_app.tagging.tag_table import TagTable
from serve_app.tagging.vocabulary import Tag, TagVocabulary

TAGS = 10_000
IMAGES = 32
FEW = 10
PIPELINE_LABELS = 60
IMAGE_SIZE_PX = (640, 480)


def median_ms(work: Callable[[], object], rounds: int) -> float:
    """Return the median time of a call in milliseconds, after one warm-up."""
    work()
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1000


def selection_rows(rounds: int) -> list[tuple[str, float]]:
    """Time selection over random logits; a tenth of the tags passes a threshold of 0.01."""
    tags = tuple(
        Tag(label=f"tag {n}", parents=(f"tag {n // 10}",) if n >= 10 else ()) for n in range(TAGS)
    )
    own = TagVocabulary(tags=tags, prompt_templates=("{label}",))
    fits = {tag.label: Fit(scale=1.1, offset=0.1, threshold=0.01) for tag in tags}
    fitted = Calibration(
        method="platt",
        checkpoint="",
        prompt_templates=("{label}",),
        images=1,
        threshold=0.01,
        tags=fits,
    )
    plain = TagTable(own)
    calibrated = TagTable(own, fitted)
    rng = np.random.default_rng(0)
    logits = rng.normal(-8, 2, (IMAGES, TAGS)).astype(np.float32)
    allowed = rng.random(TAGS) > 0.5
    cases = [
        ("threshold 0.01, at most 50", plain, SelectionRule(0.01, 50)),
        (
            "the same, calibrated, a threshold each",
            calibrated,
            SelectionRule(0.01, 50, score="calibrated"),
        ),
        ("the same, half of the tags excluded", plain, SelectionRule(0.01, 50, allowed=allowed)),
        ("nothing passes, min_tags 5", plain, SelectionRule(1.0, 50, min_tags=5)),
        ("threshold 0: all pass, at most 50", plain, SelectionRule(0.0, 50)),
        ("threshold 0.01, parents propagate", plain, SelectionRule(0.01, 50, parents="propagate")),
        ("threshold 0.01, parents suppress", plain, SelectionRule(0.01, 50, parents="suppress")),
        ("softmax", plain, SelectionRule(0.01, 50, score="softmax")),
    ]
    return [
        (name, median_ms(lambda t=table, r=rule: select_tags(logits, t, r), rounds))
        for name, table, rule in cases
    ]  # type: ignore[misc]


def config_of(folder: Path, checkpoint: Path, labels: int) -> ServiceConfig:
    """Return the configuration of a tagger with that many labels, whose bank is stored."""
    plugin = {
        "model": str(checkpoint),
        "confidence_threshold": 0.01,
        "dtype": "float32",
        "batch_size": 16,
        "device": "cpu",
    }
    block = {
        "labels": [f"label {n}" for n in range(labels)],
        "plugins": {"siglip": plugin},
        "tag_banks": str(folder / "banks"),
    }
    config = parse_config(block)
    own = config.tag_settings().vocabulary
    scorer = LocalScorer(config)
    rows = (
        np.random.default_rng(labels)
        .normal(size=(len(row_keys(own)), scorer.checkpoint.embedding_width))
        .astype(np.float32)
    )
    assert scorer.known.store is not None
    scorer.known.store.save(
        TagBank(own, rows / np.linalg.norm(rows, axis=1, keepdims=True), scorer.known.encoder)
    )
    return config


def drawn_image() -> bytes:
    """Return the JPEG of a drawn scene."""
    path = Path(tempfile.mkdtemp()) / "image.jpg"
    scenes.draw(next(iter(scenes.sample_scenes(3, 1, scenes.SEEN))), *IMAGE_SIZE_PX).save(
        path, quality=90
    )
    return path.read_bytes()


def tagging_ms(
    few: LocalTagger, many: LocalTagger, images: list[bytes], rounds: int
) -> list[float]:
    """Return the median times in which two taggers tag the same images.

    They take turns and change the order, because the speed of the machine varies.
    """
    times: dict[int, list[float]] = {id(few): [], id(many): []}
    for number in range(rounds):
        for tagger in (few, many) if number % 2 else (many, few):
            started = time.perf_counter()
            tagger.tag_images(images)
            times[id(tagger)].append(time.perf_counter() - started)
    return [statistics.median(times[id(tagger)]) * 1000 for tagger in (few, many)]


def pipeline_ms(checkpoint: Path, data: bytes, labels: int) -> float:
    """Return the median time in which the transformers pipeline tags an image."""
    classify = pipeline("zero-shot-image-classification", model=str(checkpoint), device="cpu")
    image = decode_image(data, ImageLimits())
    names = [f"label {number}" for number in range(labels)]
    template = "this is a photo of {}."
    return median_ms(
        lambda: classify(image, candidate_labels=names, hypothesis_template=template), 3
    )


def print_pipeline(checkpoint: Path, data: bytes) -> None:
    """Print what the transformers pipeline takes with few labels, and what many would take."""
    few_ms = pipeline_ms(checkpoint, data, FEW)
    more_ms = pipeline_ms(checkpoint, data, PIPELINE_LABELS)
    label_ms = (more_ms - few_ms) / (PIPELINE_LABELS - FEW)
    all_s = (more_ms + label_ms * (TAGS - PIPELINE_LABELS)) / 1000
    print(
        f"\ntransformers pipeline: {few_ms:.0f} ms with {FEW} labels, "
        f"{more_ms:.0f} with {PIPELINE_LABELS}; {label_ms:.0f} ms a label"
    )
    print(f"with {TAGS:,} it would take {all_s:,.0f} s an image (extrapolated, not run)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"### selection, {TAGS:,} tags x {IMAGES} images\n\n| | ms |\n|---|---|")
    for name, ms in selection_rows(rounds):
        print(f"| {name} | {ms:.1f} |")

    folder = Path(tempfile.mkdtemp(prefix="vocabulary-"))
    checkpoint = build_base_checkpoint(folder / "checkpoint")
    data = drawn_image()
    few, many = (LocalTagger(config_of(folder, checkpoint, count)) for count in (FEW, TAGS))
    print(
        f"\n### an image tagged with {FEW} and {TAGS:,} labels, base size, "
        f"{torch.get_num_threads()} threads, medians of {rounds}\n"
    )
    print(f"| images a batch | {FEW} labels, ms | {TAGS:,} labels, ms | ratio |\n|---|---|---|---|")
    for batch in (1, 16):
        turns = 2 * rounds if batch == 1 else max(3, rounds // 3)
        few_ms, many_ms = tagging_ms(few, many, [data] * batch, turns)
        print(f"| {batch} | {few_ms:.0f} | {many_ms:.0f} | {many_ms / few_ms:.3f} |")
    print_pipeline(checkpoint, data)


if __name__ == "__main__":
    main()
