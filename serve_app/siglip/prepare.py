"""From the bytes of a picture to what a checkpoint's vision tower takes: decode, resize, and for NaFlex cut into patches."""

import math
from dataclasses import dataclass

from PIL import Image

from serve_app.observed import StageTimes
from serve_app.siglip.checkpoints import Checkpoint
from serve_app.siglip.images import DRAFT_MARGIN, ImageLimits, decode_image, readable_formats
from serve_app.siglip.inputs import PreparedImage
from serve_app.siglip.naflex import prepare_naflex
from serve_app.siglip.preprocess import resize_square
from serve_app.siglip.tiles import MAX_TILES, views_of

JPEG_SIGNATURE = b"\xff\xd8\xff"


@dataclass(frozen=True, slots=True)
class ImagePreparer:
    """Prepares pictures for one checkpoint; safe to call from several threads."""

    checkpoint: Checkpoint
    limits: ImageLimits
    max_num_patches: int

    def __post_init__(self) -> None:
        """Load the decoders now and not with the first picture."""
        readable_formats(self.limits.formats)

    @property
    def target_px(self) -> int:
        """Side in pixels of the square that pictures are resized to, or of the square with as many patches."""
        if self.checkpoint.image_size_px is not None:
            return self.checkpoint.image_size_px
        return self.checkpoint.patch_size_px * math.isqrt(self.max_num_patches)

    @property
    def max_nbytes(self) -> int:
        """Size in bytes of the largest image that comes out; NaFlex images are padded up to each other's in a batch."""
        if self.checkpoint.image_size_px is not None:
            return self.checkpoint.image_size_px**2 * 3
        return self.max_num_patches * self.checkpoint.patch_size_px**2 * 3

    def prepare(self, data: bytes, times: StageTimes | None = None) -> PreparedImage:
        """Decode and resize one picture, noting how long each took.

        Raises:
            RequestError: The picture cannot be read; see `decode_image`.
        """
        times = times or StageTimes()
        with times.timed("decode"):
            image = decode_image(data, self.limits, self.target_px)
        with times.timed("preprocess"):
            return self._resize(image, data)

    def prepare_views(self, data: bytes, times: StageTimes | None = None) -> list[PreparedImage]:
        """Decode one picture, and resize the whole of it and its tiles, noting how long each took.

        Raises:
            RequestError: The picture cannot be read; see `decode_image`.
        """
        times = times or StageTimes()
        with times.timed("decode"):
            image = decode_image(data, self.limits, self.target_px * MAX_TILES // 2)
        with times.timed("preprocess"):
            return [self._resize(view, data) for view in views_of(image, self.target_px)]

    def _resize(self, image: Image.Image, data: bytes) -> PreparedImage:
        if self.checkpoint.image_size_px is None:
            return prepare_naflex(image, self.checkpoint.patch_size_px, self.max_num_patches, self.checkpoint.resample)
        gap = DRAFT_MARGIN if data.startswith(JPEG_SIGNATURE) else None  # only where decoding was approximate already
        return PreparedImage(resize_square(image, self.checkpoint.image_size_px, self.checkpoint.resample, gap))
