"""Blocks in the vision tower: views return in input order, errors at the index of the input."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from serve_app.batch.encoder_actor import EncoderActor
from serve_app.batch.inputs import find_inputs
from serve_app.batch.preparing import Model, Reading, prepare_block
from serve_app.batch.storage import Storage
from serve_app.batch.table_rows import join_tables
from serve_app.images.limits import ImageLimits
from serve_app.siglip.checkpoints import read_checkpoint
from serve_app.siglip.inputs import FloatArray, ImageBatch, collate
from serve_app.siglip.precision import Precision
from serve_app.siglip.prepare import ImagePreparer
from tests.conftest import encoded, random_picture
from tests.odd_names import write
from tests.unit.batch.test_inputs import options_for

SIZES = ((90, 40), (60, 129), (64, 64), (60, 175), (17, 33))
"""Some tiles have more NaFlex patches than the whole image, so they are batched before it."""
BROKEN = 2
"""Index at which an image is that cannot be read."""
MAX_NUM_PATCHES = 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, (width, height) in enumerate(SIZES):
        write(tmp_path, f"{i}.png", encoded(random_picture(width, height, i)))
    write(tmp_path, f"{BROKEN}.png", b"\x89PNG\r\n\x1a\n")
    return tmp_path


@pytest.fixture
def reading(checkpoint_folder: Path) -> Reading:
    precision = Precision(device="cpu", dtype="float32")
    model = Model(str(checkpoint_folder), None, precision, 3, MAX_NUM_PATCHES, 1)
    return Reading(model, ImageLimits(), 10**6, "high", "object", None, Storage())


def alone(
    reading: Reading, folder: Path, encode: Callable[[ImageBatch], FloatArray]
) -> Iterator[FloatArray]:
    """Yield the embeddings (V, D) of each readable image, each view encoded by itself."""
    checkpoint = read_checkpoint(Path(reading.model.source))
    preparer = ImagePreparer(checkpoint, reading.limits, MAX_NUM_PATCHES)
    for i in range(len(SIZES)):
        if i != BROKEN:
            views = preparer.prepare_views((folder / f"{i}.png").read_bytes())
            yield np.concatenate([encode(collate([view])) for view in views])


def test_views_return_in_input_order_with_the_whole_image_first(
    reading: Reading, folder: Path
) -> None:
    """Whatever their order in the batches, which are sorted by patches for NaFlex."""
    inputs = join_tables(list(find_inputs(options_for(folder)).tables))
    actor = EncoderActor(reading.model, 0, 0.0)
    block, images = prepare_block(reading, inputs)
    result = actor.encode(block, images)
    expected = list(alone(reading, folder, actor._tower.encode))
    counts = [len(views) for views in expected]
    assert max(counts) > 1
    assert result.views.tolist() == [*counts[:BROKEN], 0, *counts[BROKEN:]]
    np.testing.assert_allclose(result.image_embeds, np.concatenate(expected), atol=1e-5)
    assert [i for i, image in enumerate(result.images) if image.error is not None] == [BROKEN]


def test_an_input_fails_as_a_whole_if_one_of_its_views_does(
    reading: Reading, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others keep their embeddings, at their own index."""
    inputs = join_tables(list(find_inputs(options_for(folder)).tables))
    actor = EncoderActor(reading.model, 0, 0.0)
    block, images = prepare_block(reading, inputs)
    whole = actor.encode(block, images)
    poisoned = int(whole.views[0]) - 1  # the last view of the first input
    [marked] = np.flatnonzero(block.order == poisoned)
    batch = block.batches[marked // reading.model.batch_size]
    pixels = batch.split()[marked % reading.model.batch_size].pixel_values
    inner = actor._tower.encode

    def encode(given: ImageBatch) -> FloatArray:
        if any(np.array_equal(image.pixel_values, pixels) for image in given.split()):
            raise RuntimeError("poison")
        return inner(given)

    monkeypatch.setattr(actor._tower, "encode", encode)
    result = actor.encode(block, images)
    assert result.views.tolist() == [0, *whole.views[1:]]
    assert result.images[0].error is not None
    assert result.images[0].error.code == "inference_failed"
    np.testing.assert_allclose(result.image_embeds, whole.image_embeds[poisoned + 1 :], atol=1e-5)
    assert [image.width for image in result.images] == [image.width for image in whole.images]
