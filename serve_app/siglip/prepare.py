"""Prepares encoded images for a vision tower: decode, resize, and patchify for NaFlex."""

import math
from dataclasses import dataclass

from PIL import Image

from serve_app.images.conversion import upright_area
from serve_app.images.cost import DecodeCost, Resizing
from serve_app.images.decoding import decode_as_planned
from serve_app.images.decoding_plan import MIN_MARGIN, DecodingPlan, plan_decoding
from serve_app.images.formats import readable_formats
from serve_app.images.header_reading import read_header
from serve_app.images.limits import ImageLimits
from serve_app.siglip.checkpoints import Checkpoint
from serve_app.siglip.inputs import PreparedImage
from serve_app.siglip.naflex import prepare_naflex
from serve_app.siglip.preprocess import resize_square
from serve_app.siglip.tiles import MAX_TILES, Box, view_boxes
from serve_app.telemetry.record import StageTimes

_FILTER_SUPPORT = {
    Image.Resampling.BOX: 0.5,
    Image.Resampling.BILINEAR: 1.0,
    Image.Resampling.HAMMING: 1.0,
    Image.Resampling.LANCZOS: 3.0,
}
"""Half-width of Pillow's filters in pixels of the result; all others, such as bicubic, have 2."""


@dataclass(frozen=True, slots=True)
class ImagePreparer:
    """Prepares images for one checkpoint; safe to call from several threads."""

    checkpoint: Checkpoint
    limits: ImageLimits
    max_num_patches: int

    def __post_init__(self) -> None:
        """Load the decoders at once instead of with the first image."""
        readable_formats(self.limits.formats)

    @property
    def target_px(self) -> int:
        """Side of the square that images are resized to, in pixels.

        For NaFlex, the side of the square with `max_num_patches` patches.
        """
        if self.checkpoint.image_size_px is not None:
            return self.checkpoint.image_size_px
        return self.checkpoint.patch_size_px * math.isqrt(self.max_num_patches)

    @property
    def max_nbytes(self) -> int:
        """Size of the largest prepared image in bytes.

        Every NaFlex image may have this size, because a batch is padded to its longest image.
        """
        if self.checkpoint.image_size_px is not None:
            return self.checkpoint.image_size_px**2 * 3
        return self.max_num_patches * self.checkpoint.patch_size_px**2 * 3

    def cost_of(self, data: bytes, views: bool) -> DecodeCost:
        """Predict the cost of preparing an image from its header; fast enough for an event loop.

        Args:
            data: The encoded image.
            views: Whether the cost is that of `prepare_views` instead of `prepare`.

        Raises:
            UnsupportedImage: The format is not supported, or is disabled.
            ImageTooLarge: The image has too many pixels, or needs too much time or memory.
            InvalidImage: The header is truncated or damaged.
        """
        return self._plan(data, views).cost

    def prepare(self, data: bytes, times: StageTimes | None = None) -> PreparedImage:
        """Decode and resize one image, and record the time of both stages.

        Raises:
            RequestError: The image is unreadable or too expensive; see `decode_image`.
        """
        times = times or StageTimes()
        with times.timed("decode"):
            image, plan = self._decode(data, views=False)
        with times.timed("preprocess"):
            return self._resize(image, plan, None)

    def prepare_views(self, data: bytes, times: StageTimes | None = None) -> list[PreparedImage]:
        """Decode one image, resize it and its tiles, and record the time of both stages.

        Raises:
            RequestError: The image is unreadable or too expensive; see `decode_image`.
        """
        times = times or StageTimes()
        with times.timed("decode"):
            image, plan = self._decode(data, views=True)
        with times.timed("preprocess"):
            boxes = view_boxes(image.width, image.height, self.target_px)
            return [self._resize(image, plan, box) for box in boxes]

    def _plan(self, data: bytes, views: bool) -> DecodingPlan:
        header = read_header(data, self.limits.formats)
        draft_px = self.target_px * MAX_TILES // 2 if views else self.target_px
        shrinks_first = self.checkpoint.image_size_px is not None and header.format == "JPEG"
        resizing = Resizing(
            output_px=self.target_px,
            tiles=views,
            support=_FILTER_SUPPORT.get(Image.Resampling(self.checkpoint.resample), 2.0),
            gap=MIN_MARGIN if shrinks_first else None,
        )
        return plan_decoding(header, draft_px, resizing, self.limits)

    def _decode(self, data: bytes, views: bool) -> tuple[Image.Image, DecodingPlan]:
        plan = self._plan(data, views)
        return decode_as_planned(data, plan, self.limits), plan

    def _resize(self, image: Image.Image, plan: DecodingPlan, box: Box | None) -> PreparedImage:
        resample = self.checkpoint.resample
        area = upright_area(plan.header, image)
        if self.checkpoint.image_size_px is None:
            patch_size = self.checkpoint.patch_size_px
            full_size = plan.header.size
            return prepare_naflex(
                image, patch_size, self.max_num_patches, resample, box, area, full_size
            )
        side = self.checkpoint.image_size_px
        return PreparedImage(resize_square(image, side, resample, plan.gap, box, area))
