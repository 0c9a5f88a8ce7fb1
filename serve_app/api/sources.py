"""Turns a text of a JSON body into the bytes of an image: base64, a data URI or a URL."""

import asyncio
import binascii
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serve_app.api.fetching import Allowance, ImageFetcher, is_url
from serve_app.api.long_texts import LongText
from serve_app.api.threads import off_loop
from serve_app.config.limits import Limits
from serve_app.config.service import ServiceConfig
from serve_app.errors import InvalidRequest, PayloadTooLarge, RequestError

INLINE_BYTES = 64 * 1024
"""Base64 of at most this many bytes in sum is decoded on the event loop, more in a thread."""
ImageText = str | LongText
"""Base64, a data URI or a URL; a `LongText` is never a URL."""
_DATA_URI = re.compile(rb"\s*data:(?:[\w.+-]+/[\w.+-]+)?(?:;[^;,]*)*?; *base64,", re.IGNORECASE)
"""The prefix of a base64 data URI. Its media type is optional and may be any: the image's own bytes
decide its format. Source: RFC 2397; white space is ignored as in
https://fetch.spec.whatwg.org/#data-urls."""
_SCHEME = re.compile(rb"\s*([a-z][a-z0-9+.-]{0,20}):", re.IGNORECASE)
_BLANKS = b" \t\n\r\x0b\x0c"


@dataclass(frozen=True, slots=True)
class ImageSources:
    """Turns texts into encoded images, within the limits."""

    limits: Limits
    fetcher: ImageFetcher

    async def images(self, texts: Sequence[ImageText]) -> tuple[bytes | RequestError, ...]:
        """Return the image bytes for each text, or the error.

        A `LongText` is empty afterwards.

        Raises:
            PayloadTooLarge: There are more texts than a request may hold images.
        """
        if len(texts) > self.limits.max_images_per_request:
            raise too_many_images(len(texts), self.limits)
        texts = [text.strip() if isinstance(text, str) else text for text in texts]
        if not any(isinstance(text, str) and is_url(text) for text in texts):
            return await self._unpacked(texts)
        allowance = Allowance(self.limits.max_body_bytes)
        return tuple(await asyncio.gather(*[self._one(text, allowance) for text in texts]))

    async def _one(self, text: ImageText, allowance: Allowance) -> bytes | RequestError:
        if isinstance(text, str) and is_url(text):
            return await self.fetcher.fetch(text, allowance)
        return (await self._unpacked([text]))[0]

    async def _unpacked(self, texts: Sequence[ImageText]) -> tuple[bytes | RequestError, ...]:
        num_bytes = sum(text.nbytes if isinstance(text, LongText) else len(text) for text in texts)
        if num_bytes <= INLINE_BYTES:
            return self._unpack_all(texts)
        return await off_loop(self._unpack_all, texts)

    def _unpack_all(self, texts: Sequence[ImageText]) -> tuple[bytes | RequestError, ...]:
        return tuple(unpack_image(text, self.limits.max_image_bytes) for text in texts)


def image_sources(config: ServiceConfig) -> ImageSources:
    """Return what a service's configuration allows."""
    return ImageSources(config.limits, ImageFetcher(config.fetch, config.limits.max_image_bytes))


def unpack_image(text: ImageText, max_bytes: int) -> bytes | RequestError:
    """Return the bytes of base64 or of a data URI, or the error.

    A `LongText` is decoded piece by piece, so that no call holds the GIL for long, and is empty
    afterwards.
    """
    pieces = text if isinstance(text, LongText) else _short_text(text)
    head = pieces.head()
    prefix_bytes = data_uri_prefix(head)
    try:
        if pieces.nbytes - prefix_bytes > (max_bytes + 2) // 3 * 4 + 4:
            return too_large(max_bytes)
        return within(b"".join(_decoded(pieces, prefix_bytes)), max_bytes)
    except _CutOff:
        return InvalidRequest(
            "The base64 of an image ends within a group of four characters: it was cut off, "
            "or its padding (=) is missing. "
            "Send all of it, with padding."
        )
    except ValueError:
        return _not_base64(head, prefix_bytes)


def data_uri_prefix(head: bytes) -> int:
    """Return the length of a data URI's prefix, such as `data:image/png;base64,`; 0 without one.

    Args:
        head: The first bytes of a text, as `LongText.head` returns them.
    """
    prefix = _DATA_URI.match(head)
    return prefix.end() if prefix else 0


class _CutOff(ValueError):
    """Base64 ends within a group of four characters."""


def _short_text(text: str) -> LongText:
    """Return a text as one piece.

    Characters that are not ASCII become one that base64 does not have.
    """
    pieces = LongText()
    pieces.append_plain(text.encode("ascii", "replace"))
    return pieces


def _not_base64(head: bytes, prefix_bytes: int) -> InvalidRequest:
    """Return the error for a text that is not base64, which depends on how the text begins."""
    scheme = _SCHEME.match(head)
    if not prefix_bytes and scheme is not None:
        name = scheme[1].decode().lower()
        if name == "data":
            return InvalidRequest("An image's data URI must have ;base64, before the data.")
        return InvalidRequest(
            f"An image cannot be read from an address that begins with {name}: here. "
            "Send the image itself."
        )
    if b"-" in head[prefix_bytes:] or b"_" in head[prefix_bytes:]:
        return InvalidRequest(
            "An image is in the URL-safe alphabet of base64, which has - and _. "
            "Send it in the standard alphabet."
        )
    return InvalidRequest("An image is neither base64 nor a base64 data URI.")


def _decoded(text: LongText, num_skipped: int) -> Iterator[bytes]:
    """Decode base64 piece by piece; raises `ValueError` where it is not base64."""
    rest = b""
    is_padded = False
    for raw in text.drain():
        piece = rest + raw[num_skipped:].translate(None, _BLANKS)
        num_skipped = 0
        whole = len(piece) // 4 * 4
        rest = piece[whole:]
        if piece and is_padded:
            raise ValueError("base64 goes on after its padding")
        if whole:
            is_padded = piece[whole - 1] == ord("=")
            yield binascii.a2b_base64(piece[:whole], strict_mode=True)
    if rest:
        raise _CutOff


def within(data: bytes, max_bytes: int) -> bytes | RequestError:
    """Return the bytes of an image, or the error if there are none or too many."""
    if len(data) > max_bytes:
        return too_large(max_bytes)
    return data if data else InvalidRequest("An image is empty. Send its bytes.")


def too_large(max_bytes: int) -> PayloadTooLarge:
    """Return the error for a body or an image of more than `max_bytes`."""
    return PayloadTooLarge(
        f"That is more than the {max_bytes:,} bytes allowed. Send a smaller image."
    )


def too_many_images(num_images: int, limits: Limits) -> PayloadTooLarge:
    """Return the error for a request with too many images."""
    return PayloadTooLarge(
        f"The request holds {num_images:,} images; "
        f"at most {limits.max_images_per_request:,} are allowed."
    )
