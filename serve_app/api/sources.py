"""What a text of a JSON body stands for: the bytes of a picture in base64, or of one that is fetched by its URL."""

import asyncio
import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.api.fetching import Allowance, ImageFetcher, is_url
from serve_app.config import Limits, ServiceConfig
from serve_app.errors import InvalidRequest, PayloadTooLarge, RequestError

LARGE_TEXT_BYTES = 256 * 1024
"""From here on texts are read in a thread: 10 ms a megabyte on the event loop is too long."""
_DATA_URI = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w=.+-]+)*;base64,", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ImageSources:
    """Turns texts into encoded pictures, within the limits."""

    limits: Limits
    fetcher: ImageFetcher

    async def images(self, texts: Sequence[str]) -> tuple[bytes | RequestError, ...]:
        """Return the bytes that each text stands for, or why there are none.

        Raises:
            PayloadTooLarge: There are more texts than a request may hold images.
        """
        if len(texts) > self.limits.max_images_per_request:
            raise PayloadTooLarge(f"The request holds {len(texts)} images; at most {self.limits.max_images_per_request} are taken.")
        if not any(map(is_url, texts)):
            return await self._unpacked(texts)
        allowance = Allowance(self.limits.max_body_bytes)
        return tuple(await asyncio.gather(*[self._one(text, allowance) for text in texts]))

    async def _one(self, text: str, allowance: Allowance) -> bytes | RequestError:
        return await self.fetcher.fetch(text, allowance) if is_url(text) else (await self._unpacked([text]))[0]

    async def _unpacked(self, texts: Sequence[str]) -> tuple[bytes | RequestError, ...]:
        if sum(map(len, texts)) < LARGE_TEXT_BYTES:
            return self._unpack_all(texts)
        return await asyncio.to_thread(self._unpack_all, texts)

    def _unpack_all(self, texts: Sequence[str]) -> tuple[bytes | RequestError, ...]:
        return tuple(unpack_image(text, self.limits.max_image_bytes) for text in texts)


def image_sources(config: ServiceConfig) -> ImageSources:
    """Return what a service's configuration allows."""
    return ImageSources(config.limits, ImageFetcher(config.fetch, config.limits.max_image_bytes))


def unpack_image(text: str, max_bytes: int) -> bytes | RequestError:
    """Return the bytes of base64 or of a data URI, or why there are none."""
    prefix = _DATA_URI.match(text[:256])
    payload = text[prefix.end() :] if prefix else text
    if len(payload) > (max_bytes + 2) // 3 * 4 + 4:
        return too_large(max_bytes)
    try:
        return within(base64.b64decode("".join(payload.split()), validate=True), max_bytes)
    except (binascii.Error, ValueError):
        return InvalidRequest("An image is neither base64 nor a base64 data URI.")


def within(data: bytes, max_bytes: int) -> bytes | RequestError:
    """Return the bytes of a picture, or why they are not taken."""
    if len(data) > max_bytes:
        return too_large(max_bytes)
    return data if data else InvalidRequest("An image is empty.")


def too_large(max_bytes: int) -> PayloadTooLarge:
    """Return the error of a body or a picture of more bytes."""
    return PayloadTooLarge(f"That is more than {max_bytes:,} bytes, the most that is taken. Send a smaller picture.")
