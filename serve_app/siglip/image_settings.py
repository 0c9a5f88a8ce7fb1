"""Reads how a checkpoint's images are resized and normalized from its image processor's file.

Every key that changes what the vision tower sees is either applied or refused. The defaults, the
precedence of the two files and the meaning of each key are those of transformers'
`SiglipImageProcessor` and `Siglip2ImageProcessor`. Rescaling and normalization become one multiply
and one add per channel, which the encoder applies on the device.

Source: `image_processing_base.py`, `image_processing_utils.py` and `image_processing_backends.py`
of transformers 5.23.

Not here: resizing (`preprocess.py`, `naflex.py`).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.errors import ConfigError
from serve_app.siglip.json_files import read_json
from serve_app.siglip.processor_values import BICUBIC, BILINEAR, Channels, ProcessorValues

PROCESSOR_FILE = "processor_config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """How images are resized and normalized.

    The vision tower receives `pixel * pixel_scale + pixel_offset` of the resized image.

    Attributes:
        size_px: Side of the square that images are resized to; None for NaFlex.
        resample: Pillow's filter number.
        pixel_scale: Factor per channel, for a pixel from 0 to 255.
        pixel_offset: Summand per channel.
    """

    size_px: int | None
    resample: int
    pixel_scale: Channels
    pixel_offset: Channels


def read_image_settings(
    folder: Path, image_size_px: int | None, patch_size_px: int
) -> ImageSettings:
    """Read the image processor's settings of a checkpoint folder.

    Args:
        folder: The checkpoint.
        image_size_px: Side of the vision tower's input in pixels; None for NaFlex.
        patch_size_px: Patch side of the vision tower.

    Raises:
        ConfigError: The file is missing, or has a value that transformers or this service does not
            support.
    """
    settings = ProcessorValues(*_find_processor(folder))
    settings.check_kind(
        "SiglipImageProcessor" if image_size_px is not None else "Siglip2ImageProcessor"
    )
    settings.check_sizes()
    if not settings.flag("do_resize", True):
        raise settings.refusal(
            "do_resize", "is off, but the model needs images of one size; set it to true"
        )

    size_px = None
    if image_size_px is None:
        _check_patch_size(settings, patch_size_px)
    else:
        size_px = _square_side(settings, image_size_px, patch_size_px)
    scale, offset = _normalisation(settings)
    default_filter = BILINEAR if image_size_px is None else BICUBIC
    return ImageSettings(size_px, settings.resample(default_filter), scale, offset)


def _find_processor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file that transformers would use, and its settings.

    The block `image_processor` of processor_config.json has precedence. Older files of that name
    have no such block.
    """
    file = folder / PROCESSOR_FILE
    if file.is_file():
        nested = read_json(file, "").get("image_processor")
        if nested is not None:
            if not isinstance(nested, dict):
                raise ConfigError(f"{file}: image_processor must be a JSON object.")
            return file, nested
    file = folder / PREPROCESSOR_FILE
    if file.is_file():
        return file, read_json(file, "")
    raise ConfigError(
        f"{folder} has neither {PREPROCESSOR_FILE} nor a {PROCESSOR_FILE} with a block "
        "image_processor; one of them is needed to prepare images."
    )


def _square_side(settings: ProcessorValues, image_size_px: int, patch_size_px: int) -> int:
    """Return the side of the square that images are resized to.

    Raises:
        ConfigError: The size is not a square, or its number of patches differs from the vision
            tower's number of positions.
    """
    default = {"height": 224, "width": 224}
    size = settings.size("size", default, square=settings.flag("default_to_square", False))
    if size is None:
        raise settings.refusal(
            "size",
            "keeps the image's proportions (shortest_edge or longest_edge), but this service "
            f'resizes images to a square; use {{"height": {image_size_px}, "width": '
            f"{image_size_px}}} if the model was trained so",
        )

    for switch, key, action in (
        ("do_center_crop", "crop_size", "cut"),
        ("do_pad", "pad_size", "padded"),
    ):
        if not settings.flag(switch, False):
            continue
        if settings.content.get(key) is None:
            # Without a size, do_pad pads to the largest image of a batch; all have the same size.
            if switch == "do_pad":
                continue
            raise settings.refusal(key, f"is missing, and {switch} is true")
        if settings.size(key, None, square=True) != size:
            raise settings.refusal(
                switch,
                f"is true, and {key} differs from size; images are never {action} here, so set it "
                "to false",
            )

    height, width = size
    if height != width or height // patch_size_px != image_size_px // patch_size_px:
        raise settings.refusal(
            "size",
            f"is {height}×{width}, but the model in config.json takes images of "
            f"{image_size_px}×{image_size_px}",
        )
    return height


def _check_patch_size(settings: ProcessorValues, patch_size_px: int) -> None:
    value = settings.content.get("patch_size", 16)
    if value != patch_size_px or type(value) is not int:
        raise settings.refusal(
            "patch_size",
            f"must be {patch_size_px}, the patch_size of vision_config in config.json",
        )
    if settings.flag("do_center_crop", False) and settings.content.get("crop_size") is None:
        raise settings.refusal("crop_size", "is missing, and do_center_crop is true")


def _normalisation(settings: ProcessorValues) -> tuple[Channels, Channels]:
    """Return scale and offset of `(pixel * rescale_factor - mean) / std`.

    Steps that are switched off are left out.
    """
    rescale = 1.0
    if settings.flag("do_rescale", True):
        rescale = settings.number("rescale_factor", 1 / 255)
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)
    if settings.flag("do_normalize", True):
        mean = settings.channels("image_mean", 0.5)
        std = settings.channels("image_std", 0.5)
    if 0 in std:
        raise settings.refusal("image_std", "must not be 0, because pixels are divided by it")
    scale = tuple(rescale / s for s in std)
    offset = tuple(-m / s for m, s in zip(mean, std, strict=True))
    if not all(math.isfinite(value) and abs(value) < 1e30 for value in (*scale, *offset)):
        raise settings.refusal("image_std", "is too small to divide pixels by it")
    return (scale[0], scale[1], scale[2]), (offset[0], offset[1], offset[2])
