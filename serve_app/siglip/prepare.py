"""From the bytes of an image to what a checkpoint's vision tower takes: decode, resize, and for NaFlex cut into patches."""

import math
from dataclasses import dataclass

from PIL import Image

from serve_app.observed import StageTimes
from serve_app.siglip.checkpoints import Checkpoint
from serve_app.siglip.images.cost import DRAFT_MARGIN, DecodeCost, Resizing, check, predict
from serve_app.siglip.images.decoding import decode_image
from serve_app.siglip.images.formats import readable_formats
from serve_app.siglip.images.header import ImageHeader
from serve_app.siglip.images.headers import read_header
from serve_app.siglip.images.limits import ImageLimits
from serve_app.siglip.inputs import PreparedImage
from serve_app.siglip.naflex import prepare_naflex
from serve_app.siglip.preprocess import resize_square
from serve_app.siglip.tiles import MAX_TILES, Box, view_boxes

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
        """Side in pixels of the square that images are resized to, or of the square with as many patches."""
        if self.checkpoint.image_size_px is not None:
            return self.checkpoint.image_size_px
        return self.checkpoint.patch_size_px * math.isqrt(self.max_num_patches)

    @property
    def max_nbytes(self) -> int:
        """Size in bytes of the largest image that comes out; NaFlex images are padded up to each other's in a batch."""
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
        header = read_header(data, self.limits.formats)
        cost = predict(header, self._draft_px(views), self._resizing(header, views))
        check(header, cost, self.limits)
        return cost

    def prepare(self, data: bytes, times: StageTimes | None = None) -> PreparedImage:
        """Decode and resize one image, noting how long each took.

        Raises:
            RequestError: The image cannot be read or costs too much; see `decode_image`.
        """
        times = times or StageTimes()
        with times.timed("decode"):
            image, header = self._decode(data, views=False)
        with times.timed("preprocess"):
            return self._resize(image, header, None)

    def prepare_views(self, data: bytes, times: StageTimes | None = None) -> list[PreparedImage]:
        """Decode one image, and resize the whole of it and its tiles, noting how long each took.

        Raises:
            RequestError: The image cannot be read or costs too much; see `decode_image`.
        """
        times = times or StageTimes()
        with times.timed("decode"):
            image, header = self._decode(data, views=True)
        with times.timed("preprocess"):
            boxes = view_boxes(image.width, image.height, self.target_px)
            return [self._resize(image, header, box) for box in boxes]

    def _decode(self, data: bytes, views: bool) -> tuple[Image.Image, ImageHeader]:
        header = read_header(data, self.limits.formats)
        resizing = self._resizing(header, views)
        image = decode_image(data, self.limits, self._draft_px(views), header, resizing)
        return image, header

    def _draft_px(self, views: bool) -> int:
        return self.target_px * MAX_TILES // 2 if views else self.target_px

    def _resizing(self, header: ImageHeader, views: bool) -> Resizing:
        return Resizing(
            output_px=self.target_px,
            tiles=views,
            support=_FILTER_SUPPORT.get(Image.Resampling(self.checkpoint.resample), 2.0),
            gap=self._reducing_gap(header),
        )

    def _reducing_gap(self, header: ImageHeader) -> float | None:
        """Return the gap for JPEGs, where decoding was approximate already; None for an exact resize."""
        if header.format != "JPEG" or self.checkpoint.image_size_px is None:
            return None
        return DRAFT_MARGIN

    def _resize(self, image: Image.Image, header: ImageHeader, box: Box | None) -> PreparedImage:
        resample = self.checkpoint.resample
        if self.checkpoint.image_size_px is None:
            patch_size = self.checkpoint.patch_size_px
            return prepare_naflex(image, patch_size, self.max_num_patches, resample, box)
        gap = self._reducing_gap(header)
        return PreparedImage(resize_square(image, self.checkpoint.image_size_px, resample, gap, box))
