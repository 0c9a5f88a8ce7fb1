"""From the bytes of an image to what a checkpoint's vision tower takes: decode, resize, and for
NaFlex cut into patches.
"""

import math
from dataclasses import dataclass

from PIL import Image

from serve_app.siglip.checkpoints import Checkpoint
from serve_app.siglip.images.conversion import upright_area
from serve_app.siglip.images.cost import DecodeCost, Resizing
from serve_app.siglip.images.decoding import decode_as_planned
from serve_app.siglip.images.formats import readable_formats
from serve_app.siglip.images.headers import read_header
from serve_app.siglip.images.limits import ImageLimits
from serve_app.siglip.images.plan import MIN_MARGIN, DecodingPlan, plan_decoding
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
"""Half-width of Pillow's filters in pixels of the result; bicubic, the usual one, has 2."""


@dataclass(frozen=True, slots=True)
class ImagePreparer:
    """Prepares images for one checkpoint; safe to call from several threads."""

    checkpoint: Checkpoint
    limits: ImageLimits
    max_num_patches: int

    def __post_init__(self) -> None:
        """Load the decoders now and not with the first image."""
        readable_formats(self.limits.formats)

    @property
    def target_px(self) -> int:
        """Side in pixels of the square that images are resized to, or of the square with as many
        patches.
        """
        if self.checkpoint.image_size_px is not None:
            return self.checkpoint.image_size_px
        return self.checkpoint.patch_size_px * math.isqrt(self.max_num_patches)

    @property
    def max_nbytes(self) -> int:
        """Size in bytes of the largest image that comes out; NaFlex images are padded up to each
        other's in a batch.
        """
        if self.checkpoint.image_size_px is not None:
            return self.checkpoint.image_size_px**2 * 3
        return self.max_num_patches * self.checkpoint.patch_size_px**2 * 3

    def cost_of(self, data: bytes, views: bool) -> DecodeCost:
        """Predict what preparing an image costs, from its header; cheap enough for an event loop.

        Args:
            data: The encoded image.
            views: Whether it is for `prepare_views` instead of `prepare`.

        Raises:
            UnsupportedImage: The format is not supported or switched off.
            ImageTooLarge: The image has too many pixels, or would cost too much time or memory.
            InvalidImage: The header is truncated or damaged.
        """
        return self._plan(data, views).cost

    def prepare(self, data: bytes, times: StageTimes | None = None) -> PreparedImage:
        """Decode and resize one image, noting how long each took.

        Raises:
            RequestError: The image cannot be read or costs too much; see `decode_image`.
        """
        times = times or StageTimes()
        with times.timed("decode"):
            image, plan = self._decode(data, views=False)
        with times.timed("preprocess"):
            return self._resize(image, plan, None)

    def prepare_views(self, data: bytes, times: StageTimes | None = None) -> list[PreparedImage]:
        """Decode one image, and resize the whole of it and its tiles, noting how long each took.

        Raises:
            RequestError: The image cannot be read or costs too much; see `decode_image`.
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
        resizing = Resizing(
            output_px=self.target_px,
            tiles=views,
            support=_FILTER_SUPPORT.get(Image.Resampling(self.checkpoint.resample), 2.0),
            gap=None
            if self.checkpoint.image_size_px is None or header.format != "JPEG"
            else MIN_MARGIN,
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
