"""Values of an image processor's file, each one checked when it is read.

Not here: what the values mean for an image (`image_settings.py`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.errors import ConfigError

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
class ProcessorValues:
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
