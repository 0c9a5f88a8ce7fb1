"""Scenes drawn for training, and the labels that are true of each scene and of each patch."""

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.demo import scenes
from serve_app.siglip.preprocess import resize_square
from tools.demo_training import checkpoint_files

CANVASES_PX = ((112, 96), (96, 112), (104, 104), (128, 96), (96, 128))
"""Widths and heights at which training scenes are drawn before they are resized to a square."""
SCENES_PER_TASK = 256


@dataclass(frozen=True)
class Dataset:
    """Scenes as the model reads them.

    Attributes:
        pixels: (N, H, W, 3) uint8.
        truth: (N, T) bool, which of `labels` is true of each scene. Pair labels come last.
        object_truth: (N, 4, T - pairs) bool, one row for each of up to three objects, and a last
            row for the background, which is all false.
        patch_objects: (N, patches) int8, the row of `object_truth` that holds for each patch.
        labels: T labels.
    """

    pixels: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.bool_]
    object_truth: npt.NDArray[np.bool_]
    patch_objects: npt.NDArray[np.int8]
    labels: list[str]


def draw_dataset(
    seed: int, count: int, combinations: tuple[scenes.Combination, ...], unnamed_share: float = 0.0
) -> Dataset:
    """Draw `count` scenes of `combinations` and find the labels that are true of each."""
    object_labels = scenes.attribute_labels() + scenes.combination_labels(combinations)
    labels = object_labels + scenes.pair_labels()
    sampled = list(scenes.sample_scenes(seed, count, combinations, unnamed_share))

    with multiprocessing.get_context("spawn").Pool() as pool:
        images = pool.map(_draw_training_image, sampled, chunksize=SCENES_PER_TASK)

    truth = np.array([[label in scenes.labels_in(scene) for label in labels] for scene in sampled])
    side = checkpoint_files.IMAGE_SIZE_PX // checkpoint_files.PATCH_SIZE_PX
    grids = [scenes.object_grid(scene, *_canvas_px(scene), side).reshape(-1) for scene in sampled]
    return Dataset(
        np.stack(images), truth, _object_truth(sampled, object_labels), np.stack(grids), labels
    )


def _object_truth(
    sampled: Sequence[scenes.Scene], object_labels: list[str]
) -> npt.NDArray[np.bool_]:
    truth = np.zeros((len(sampled), scenes.MAX_OBJECTS + 1, len(object_labels)), np.bool_)
    for row, scene in enumerate(sampled):
        for i, thing in enumerate(scene.objects):
            truth[row, i, [object_labels.index(label) for label in thing.labels]] = True
    return truth


def _canvas_px(scene: scenes.Scene) -> tuple[int, int]:
    return CANVASES_PX[scene.seed % len(CANVASES_PX)]


def _draw_training_image(scene: scenes.Scene) -> npt.NDArray[np.uint8]:
    image = scenes.draw(scene, *_canvas_px(scene))
    return resize_square(image, checkpoint_files.IMAGE_SIZE_PX, checkpoint_files.RESAMPLE)
