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

PROCESSOR_FILE = "processor_config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
NEAREST = 0
BILINEAR = 2
BICUBIC = 3
"""Pillow's numbers of three filters; the others are 1 (Lanczos), 4 (box) and 5 (Hamming)."""
NUM_FILTERS = 6
CHANNELS = 3
MAX_SIDE_PX = 100_000
_SIZE_KEYS = (
    {"height", "width"},
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
    {"longest_edge"},
)

Channels = tuple[float, float, float]
Size = tuple[int, int]


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
    settings = _Settings(*_find_processor(folder))
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


@dataclass(frozen=True, slots=True)
class _Settings:
    """The keys of an image processor's file.

    As in transformers, null does not mean the default: it turns a switch off.
    """

    file: Path
    content: dict[str, Any]

    def refusal(self, key: str, reason: str) -> ConfigError:
        """Return the error for a key whose value is not supported."""
        return ConfigError(f"{self.file}: {key} {reason}.")

    def check_kind(self, supported: str) -> None:
        """Refuse the image processor of another model, and code from the checkpoint."""
        kind = self.content.get("image_processor_type")
        if kind is None:
            kind = str(self.content.get("feature_extractor_type") or supported)
            kind = kind.replace("FeatureExtractor", "ImageProcessor")
        if str(kind).removesuffix("Fast").removesuffix("Pil") != supported:
            shown = str(kind)[:100]
            raise self.refusal(
                "image_processor_type",
                f"is {shown}, but this checkpoint needs the image processor {supported}",
            )
        if self.content.get("auto_map"):
            raise self.refusal(
                "auto_map",
                "names code from the checkpoint, which is never run; remove it if the model works "
                "without",
            )

    def check_sizes(self) -> None:
        """Refuse invalid sizes, even if the step that uses them is disabled."""
        for key in ("size", "crop_size", "pad_size"):
            if self.content.get(key) is not None:
                self.size(key, None, square=True)

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean setting."""
        value = self.content.get(key, default)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.refusal(key, "must be true, false or null")
        return value

    def number(self, key: str, default: float) -> float:
        """Return a numeric setting."""
        return self._finite(key, self.content.get(key, default))

    def channels(self, key: str, default: float) -> Channels:
        """Return one number per channel; a single number applies to all three."""
        value = self.content.get(key, default)
        if not isinstance(value, list):
            value = [value] * CHANNELS
        if len(value) != CHANNELS:
            raise self.refusal(key, "must be one number or three, for red, green and blue")
        red, green, blue = (self._finite(key, number) for number in value)
        return red, green, blue

    def resample(self, default: int) -> int:
        """Return Pillow's filter number."""
        value = self.content.get("resample", default)
        if value is None:
            return BILINEAR  # the default of transformers' resize
        if type(value) is not int or not 0 <= value < NUM_FILTERS:
            raise self.refusal(
                "resample", f"must be one of Pillow's filters, 0 to {NUM_FILTERS - 1}, or null"
            )
        if value == NEAREST:
            raise self.refusal(
                "resample",
                "is 0, nearest pixel, whose result differs between libraries; use 2 (bilinear) or "
                "3 (bicubic)",
            )
        return value

    def size(self, key: str, default: Any, square: bool) -> Size | None:
        """Return height and width, or None if the size depends on the image.

        Args:
            key: The setting.
            default: The value if the file has none.
            square: Whether a single number is the side of a square instead of the shortest edge.
        """
        value = self.content.get(key, default)
        if isinstance(value, list) and len(value) >= 2:
            return self._side(key, value[0]), self._side(key, value[1])
        if isinstance(value, dict) and set(value) in _SIZE_KEYS:
            for side in value.values():
                self._side(key, side)
            return (value["height"], value["width"]) if "height" in value else None
        if type(value) is int:
            side_px = self._side(key, value)
            return (side_px, side_px) if square else None
        raise self.refusal(key, 'must be an object such as {"height": 224, "width": 224}')

    def _side(self, key: str, value: Any) -> int:
        if type(value) is not int or not 1 <= value <= MAX_SIDE_PX:
            raise self.refusal(key, f"must be a whole number of pixels from 1 to {MAX_SIDE_PX:,}")
        return value

    def _finite(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refusal(key, "must be a number")
        try:
            return float(value)
        except OverflowError as error:
            raise self.refusal(key, "is too large") from error


def _square_side(settings: _Settings, image_size_px: int, patch_size_px: int) -> int:
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


def _check_patch_size(settings: _Settings, patch_size_px: int) -> None:
    value = settings.content.get("patch_size", 16)
    if value != patch_size_px or type(value) is not int:
        raise settings.refusal(
            "patch_size",
            f"must be {patch_size_px}, the patch_size of vision_config in config.json",
        )
    if settings.flag("do_center_crop", False) and settings.content.get("crop_size") is None:
        raise settings.refusal("crop_size", "is missing, and do_center_crop is true")


def _normalisation(settings: _Settings) -> tuple[Channels, Channels]:
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
