"""The `limits` block: what one request may carry, and what all requests together may hold."""

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from serve_app.config.settings import Count, Seconds, Settings

ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"]
ALL_FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)
HELD_FOR_EACH_BYTE = 2
"""Peak memory in bytes for each byte of a body.

Raw bodies hold their chunks while joining them, forms while a file is read, JSON while base64 is
decoded. Measured 2026-11: 1.9, 1.1 and 1.9.
"""


class Limits(Settings):
    """Limits of one request and of all requests that one replica holds."""

    max_body_bytes: Count = 64 * 2**20
    max_image_bytes: Count = 20 * 2**20
    max_image_pixels: Count = 50_000_000
    max_image_side: Count = 32_768
    max_decode_cost: float = Field(10.0, gt=0)
    max_decode_bytes: Count = 200 * 2**20
    max_images_per_request: Count = 64
    max_embeddings_per_request: Count = 1_024
    max_labels_per_request: Count = 1_000
    max_cached_label_bytes: Count = 256 * 2**20
    max_response_bytes: Count = 16 * 2**20
    max_held_bytes: Count = 384 * 2**20
    max_concurrent_requests: Count = 512
    body_timeout_s: Seconds = 30.0
    write_timeout_s: Seconds = 30.0
    image_formats: tuple[ImageFormat, ...] = Field(ALL_FORMATS, min_length=1)

    @model_validator(mode="after")
    def _check_held(self) -> Self:
        needed = HELD_FOR_EACH_BYTE * self.max_body_bytes + self.max_response_bytes
        if self.max_held_bytes < needed:
            raise ValueError(
                f"max_held_bytes {self.max_held_bytes:,} is less than one request may hold; "
                f"use at least {needed:,} (twice max_body_bytes plus max_response_bytes), "
                "or lower those"
            )
        return self
