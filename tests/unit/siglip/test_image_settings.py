"""Settings of image processors give the pixel values of transformers' own class or are refused."""

import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor

from serve_app.errors import ConfigError
from serve_app.images.limits import ImageLimits
from serve_app.siglip.checkpoints import read_checkpoint
from serve_app.siglip.inputs import collate
from serve_app.siglip.prepare import ImagePreparer
from tests.conftest import encoded, random_picture

PICTURE = encoded(random_picture(70, 45, seed=3))
MAX_NUM_PATCHES = 64
PLAIN = {"fixed": {"size": {"height": 32, "width": 32}}, "naflex": {}}
FOLDERS = {"fixed": "siglip2", "naflex": "siglip2-naflex"}


def write(
    folder: Path, preprocessor: dict[str, Any] | None, processor: dict[str, Any] | None = None
) -> None:
    """Replace the image processor's files of a checkpoint."""
    for name, content in (
        ("preprocessor_config.json", preprocessor),
        ("processor_config.json", processor),
    ):
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_text(json.dumps(content))


def our_values(folder: Path) -> np.ndarray:
    """Return the vision tower's input for the image: (H, W, 3), or (N, P·P·3) for NaFlex."""
    checkpoint = read_checkpoint(folder)
    prepared = ImagePreparer(checkpoint, ImageLimits(), MAX_NUM_PATCHES).prepare(PICTURE)
    pixels = collate([prepared]).pixel_values[0].astype(np.float64)
    repeat = pixels.shape[-1] // 3
    return pixels * np.tile(checkpoint.pixel_scale, repeat) + np.tile(
        checkpoint.pixel_offset, repeat
    )


def their_values(folder: Path) -> np.ndarray:
    """Return the pixel values of transformers' image processor, in the layout of `our_values`."""
    processor = AutoImageProcessor.from_pretrained(folder)
    naflex = "Siglip2" in type(processor).__name__
    options = {"max_num_patches": MAX_NUM_PATCHES} if naflex else {}
    values = processor(Image.open(io.BytesIO(PICTURE)), return_tensors="np", **options)
    if naflex:
        return values["pixel_values"][0][values["pixel_attention_mask"][0] == 1]
    return values["pixel_values"][0].transpose(1, 2, 0)


def check_same(folder: Path) -> None:
    """Assert that both see the same, up to the rounding of float32."""
    theirs = their_values(folder)
    np.testing.assert_allclose(
        our_values(folder), theirs, atol=2e-5 * max(1.0, float(np.abs(theirs).max()))
    )


HONOURED: list[dict[str, Any]] = [
    {},
    {"do_normalize": False},
    {"do_rescale": False},
    {"do_normalize": False, "do_rescale": False},
    {"rescale_factor": 1 / 127.5},
    {"rescale_factor": 0.01, "do_normalize": False},
    {"rescale_factor": 1 / 127.5, "do_rescale": False},
    {"do_rescale": None, "rescale_factor": None},
    {"do_normalize": None, "image_mean": None, "image_std": None},
    {"do_rescale": None, "do_normalize": None, "do_convert_rgb": None, "data_format": None},
    {"image_mean": 0.4},
    {"image_std": 2},
    {"image_mean": 0, "image_std": 1},
    {"image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.25, 0.27]},
    {"resample": 1},
    {"resample": 2},
    {"resample": 3},
    {"resample": 4},
    {"resample": 5},
    {"do_convert_rgb": False},
    {"image_processor_type": None},
    {"image_processor_type": "{}ImageProcessor"},
    {"image_processor_type": "{}ImageProcessorFast"},
    {"image_processor_type": "{}ImageProcessorPil"},
    {"a_key_of_another_library": 7},
]


@pytest.fixture(params=FOLDERS)
def kind(request: pytest.FixtureRequest) -> str:
    """A checkpoint with images of one size, and one of NaFlex."""
    return request.param


@pytest.fixture
def folder(tiny: Callable[[str], Path], tmp_path: Path, kind: str) -> Path:
    return shutil.copytree(tiny(FOLDERS[kind]), tmp_path / "c")


def named(content: dict[str, Any], kind: str) -> dict[str, Any]:
    """Write the class of a family's image processor into a template."""
    prefix = "Siglip" if kind == "fixed" else "Siglip2"
    return {
        key: value.format(prefix) if isinstance(value, str) else value
        for key, value in content.items()
    }


@pytest.mark.parametrize("content", HONOURED, ids=str)
def test_honoured_keys_give_the_values_of_transformers(
    folder: Path, kind: str, content: dict[str, Any]
) -> None:
    """Every one of them, in both processors."""
    write(folder, PLAIN[kind] | named(content, kind))
    check_same(folder)


@pytest.mark.parametrize(
    "content",
    [
        {"size": [32, 32]},
        {"size": 32, "default_to_square": True},
        {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        {"do_center_crop": True, "crop_size": 32},
        {"do_center_crop": None, "crop_size": {"height": 20, "width": 20}},
        {"do_pad": True},
        {"do_pad": True, "pad_size": {"height": 32, "width": 32}},
        {"do_pad": False, "pad_size": {"height": 40, "width": 40}},
        {"size": {"height": 38, "width": 38}},
    ],
    ids=str,
)
def test_sizes_that_come_to_the_square_are_honoured(
    tiny: Callable[[str], Path], tmp_path: Path, content: dict[str, Any]
) -> None:
    """Crops and paddings without an effect are allowed, and 38 pixels for 4 patches of 8."""
    folder = shutil.copytree(tiny("siglip2"), tmp_path / "c")
    write(folder, PLAIN["fixed"] | content)
    check_same(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"do_resize": False}, "do_resize is off"),
        ({"do_resize": None}, "do_resize is off"),
        ({"do_normalize": "false"}, "do_normalize must be true, false or null"),
        ({"do_rescale": 0}, "do_rescale must be true, false or null"),
        ({"rescale_factor": "1/255"}, "rescale_factor must be a number"),
        ({"rescale_factor": True}, "rescale_factor must be a number"),
        ({"rescale_factor": None}, "rescale_factor must be a number"),
        ({"image_mean": None}, "image_mean must be a number"),
        ({"image_mean": [0.5, 0.5]}, "image_mean must be one number or three"),
        ({"image_mean": [0.5, 0.5, None]}, "image_mean must be a number"),
        ({"image_mean": "0.5"}, "image_mean must be a number"),
        ({"image_mean": 10**400}, "image_mean is too large"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std must not be 0"),
        ({"image_std": 1e-300}, "image_std is too small"),
        ({"resample": 6}, "resample must be one of Pillow's filters"),
        ({"resample": 3.0}, "resample must be one of Pillow's filters"),
        ({"resample": True}, "resample must be one of Pillow's filters"),
        ({"resample": "bicubic"}, "resample must be one of Pillow's filters"),
        ({"resample": 0}, "resample is 0"),
        ({"do_center_crop": True}, "crop_size is missing"),
        (
            {"image_processor_type": "CLIPImageProcessor"},
            "image_processor_type is CLIPImageProcessor",
        ),
        ({"auto_map": {"AutoImageProcessor": "code.Processor"}}, "auto_map names code"),
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_refused(
    folder: Path, kind: str, content: dict[str, Any], said: str
) -> None:
    """The message names the file and the key."""
    write(folder, PLAIN[kind] | content)
    with pytest.raises(ConfigError, match=said) as refused:
        read_checkpoint(folder)
    assert "preprocessor_config.json" in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"size": {"shortest_edge": 32}}, "keeps the image's proportions"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "keeps the image's proportions"),
        ({"size": {"longest_edge": 32}}, "keeps the image's proportions"),
        ({"size": 32}, "keeps the image's proportions"),
        (
            {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 32},
            "keeps the image's proportions",
        ),
        (
            {"size": {"height": 40, "width": 40}, "do_center_crop": True, "crop_size": 32},
            "do_center_crop is true",
        ),
        (
            {"do_center_crop": True, "crop_size": {"height": 24, "width": 24}},
            "do_center_crop is true",
        ),
        ({"do_pad": True, "pad_size": {"height": 40, "width": 40}}, "do_pad is true"),
        ({"size": {"height": 40, "width": 40}}, "size is 40×40"),
        ({"size": {"height": 32, "width": 64}}, "size is 32×64"),
        ({"size": {"height": 16, "width": 64}}, "size is 16×64"),
        ({"size": None}, "size must be an object"),
        ({"size": [32]}, "size must be an object"),
        ({"size": {"height": 32}}, "size must be an object"),
        ({"size": {"height": 32.0, "width": 32}}, "size must be a whole number of pixels"),
        ({"size": {"height": 0, "width": 0}}, "size must be a whole number of pixels"),
        ({"size": "32"}, "size must be an object"),
    ],
    ids=str,
)
def test_other_sizes_than_the_models_are_refused(
    tiny: Callable[[str], Path], tmp_path: Path, content: dict[str, Any], said: str
) -> None:
    """Images are only resized to the square that the vision tower has positions for."""
    folder = shutil.copytree(tiny("siglip2"), tmp_path / "c")
    write(folder, PLAIN["fixed"] | content)
    with pytest.raises(ConfigError, match=said):
        read_checkpoint(folder)


def test_size_and_filter_have_the_defaults_of_transformers(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """The defaults are 224 pixels and bicubic for every family; a null filter is bilinear."""
    folder = shutil.copytree(tiny("siglip2"), tmp_path / "c")
    write(folder, {"resample": 2})
    with pytest.raises(ConfigError, match="size is 224×224"):
        read_checkpoint(folder)
    write(folder, PLAIN["fixed"])
    assert (
        read_checkpoint(folder).resample == AutoImageProcessor.from_pretrained(folder).resample == 3
    )
    write(folder, PLAIN["fixed"] | {"resample": None})
    assert read_checkpoint(folder).resample == 2


def test_naflex_takes_null_for_the_bilinear_filter(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """As its processor does."""
    folder = shutil.copytree(tiny("siglip2-naflex"), tmp_path / "c")
    write(folder, {"resample": None})
    check_same(folder)


@pytest.mark.parametrize("patch_size", [8, "16", 16.0, True, None])
def test_patches_of_another_size_than_the_models_are_refused(
    tiny: Callable[[str], Path], tmp_path: Path, patch_size: object
) -> None:
    """NaFlex cuts images into patches before the tower sees them."""
    folder = shutil.copytree(tiny("siglip2-naflex"), tmp_path / "c")
    write(folder, {"patch_size": patch_size})
    with pytest.raises(ConfigError, match="patch_size must be 16"):
        read_checkpoint(folder)


OLD = {"do_normalize": False}
NEW = {"image_mean": 0.1, "image_std": 0.2}


@pytest.mark.parametrize(
    ("preprocessor", "processor"),
    [
        (OLD, {"image_processor": NEW}),
        (None, {"image_processor": NEW}),
        (OLD, {"image_processor": None}),
        (OLD, {"processor_class": "SiglipProcessor"}),
        (OLD, NEW),
        (OLD, {"image_processor": NEW, "video_processor": OLD}),
    ],
    ids=str,
)
def test_the_file_that_counts_is_that_of_transformers(
    folder: Path, kind: str, preprocessor: dict[str, Any] | None, processor: dict[str, Any]
) -> None:
    """The block image_processor in processor_config.json precedes preprocessor_config.json."""
    if isinstance(nested := processor.get("image_processor"), dict):
        processor = processor | {"image_processor": PLAIN[kind] | nested}
    write(folder, None if preprocessor is None else PLAIN[kind] | preprocessor, processor)
    (folder / "video_preprocessor_config.json").write_text(json.dumps({"image_mean": 0.9}))
    check_same(folder)


@pytest.mark.parametrize("processor", [{"image_processor": None}, {"image_mean": 0.5}, {}], ids=str)
def test_a_processor_file_without_image_processor_is_not_enough(
    folder: Path, processor: dict[str, Any]
) -> None:
    """Transformers loads neither of them."""
    write(folder, None, processor)
    with pytest.raises(ConfigError, match=r"neither preprocessor_config\.json"):
        read_checkpoint(folder)
    with pytest.raises(OSError, match="image processor"):
        AutoImageProcessor.from_pretrained(folder)


NUMBERS = st.one_of(
    st.none(),
    st.floats(-3, 3, width=32),
    st.integers(-2, 300),
    st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=4),
)
SIDES = st.sampled_from([24, 32, 38, 39, 40])
SIZES = st.one_of(
    st.none(),
    SIDES,
    st.lists(SIDES, min_size=1, max_size=3),
    st.fixed_dictionaries({"height": SIDES, "width": SIDES}),
    st.just({"height": 32, "width": 32}),
    st.just({"shortest_edge": 32}),
    st.just({"shortest_edge": 32, "longest_edge": 48}),
)
FLAGS = st.sampled_from([True, False, None])
CONTENT = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(
            ("do_rescale", "do_normalize", "do_convert_rgb", "default_to_square"), FLAGS
        ),
        **dict.fromkeys(
            ("do_resize", "do_center_crop", "do_pad"), st.sampled_from([True, None, False])
        ),
        **dict.fromkeys(("image_mean", "image_std"), NUMBERS),
        **dict.fromkeys(("crop_size", "pad_size"), SIZES),
        "rescale_factor": st.one_of(st.none(), st.floats(0.001, 2), st.integers(0, 2)),
        "resample": st.one_of(st.none(), st.integers(0, 6)),
        "patch_size": st.sampled_from([16, 8, None]),
        "data_format": st.sampled_from(["channels_first", "channels_last", None]),
    },
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(content=CONTENT, size=SIZES, plain=st.booleans(), nested=st.booleans())
def test_every_file_is_followed_or_refused(
    folder: Path, kind: str, content: dict, size: object, plain: bool, nested: bool
) -> None:
    """For any content, pixel values are those of transformers, or the checkpoint is refused."""
    content = content | (
        {} if kind == "naflex" else {"size": {"height": 32, "width": 32} if plain else size}
    )
    write(
        folder,
        {"do_rescale": False} | PLAIN[kind] if nested else content,
        {"image_processor": content} if nested else None,
    )
    try:
        read_checkpoint(folder)
    except ConfigError:
        return
    if (
        kind == "fixed" and content.get("resample", 3) is None
    ):  # transformers loads it and fails with the first image
        return
    check_same(folder)


def test_scale_and_offset_are_those_of_the_formula(folder: Path, kind: str) -> None:
    """By hand: (128 / 255 - 0.4) / 0.25."""
    write(folder, PLAIN[kind] | {"image_mean": 0.4, "image_std": 0.25})
    checkpoint = read_checkpoint(folder)
    value = 128 * checkpoint.pixel_scale[1] + checkpoint.pixel_offset[1]
    assert math.isclose(value, (128 / 255 - 0.4) / 0.25, rel_tol=1e-9)
