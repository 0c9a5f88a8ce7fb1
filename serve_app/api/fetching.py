"""Images by URL, from public addresses only and with limits on bytes, time and redirects.

A name is resolved once, all its addresses are checked, and the connection goes to one of them. If
the name were resolved again, it could have another address by then. Redirects are followed here one
by one, and each is checked like the first address. The reason for a refusal does not say what was
found at the address.

Not here: which addresses are public (`public_addresses.py`).
"""

import asyncio
import contextlib
import fnmatch
import functools
import ipaddress
import logging
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore

from serve_app import __version__
from serve_app.api.content_length import parse_content_length
from serve_app.api.public_addresses import may_fetch_from
from serve_app.config.access import Fetching
from serve_app.errors import InvalidRequest, PayloadTooLarge, RequestError, SourceUnavailable

logger = logging.getLogger(__name__)

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Returns the addresses of a host and a port."""

MAX_URL_CHARACTERS = 4_096
MAX_RESOLVING = 8
"""Names that are resolved at the same time."""
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*|[0-9a-f:.]+", re.IGNORECASE)
REDIRECTS = {301, 302, 303, 307, 308}
HEADERS = [
    ("User-Agent", f"siglip-serve/{__version__}"),
    ("Accept", "image/*"),
    ("Accept-Encoding", "identity"),
]

HTTPCORE_ERRORS = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.ConnectionNotAvailable,
)

_REFUSED = "Images are not fetched from that address."
_FAILED = "The image could not be fetched. Check the address, or send the image itself."
OFF = "Images are not fetched by URL here. Send the image itself, or as a data URI."


def is_url(text: str) -> bool:
    """Return whether a text is the URL of an image rather than the image itself."""
    return text[:8].lower().startswith(("http://", "https://"))


_RESOLVING = ThreadPoolExecutor(MAX_RESOLVING, thread_name_prefix="resolve")
"""Threads only for resolving: a name server that does not respond would otherwise block the event
loop's default threads."""


async def resolve(host: str, port: int) -> list[str]:
    """Return every address of a host, from the machine's resolver."""
    look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_RESOLVING, look_up)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Allowance:
    """What all images of one request together may fetch.

    Attributes:
        turns: Limits how many are fetched at the same time.
    """

    def __init__(self, max_bytes: int, max_concurrent: int = 8) -> None:
        """Start with nothing fetched.

        Args:
            max_bytes: Maximum size of all images in sum.
            max_concurrent: Maximum number of images that are fetched at the same time.
        """
        self.turns = asyncio.Semaphore(max_concurrent)
        self._max_bytes = max_bytes
        self._num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Count bytes that were fetched.

        Raises:
            PayloadTooLarge: The images have more bytes than allowed.
        """
        self._num_bytes += num_bytes
        if self._num_bytes > self._max_bytes:
            raise PayloadTooLarge(
                f"The images of the request have more than {self._max_bytes:,} bytes together, "
                "which is the limit. Send fewer or smaller ones."
            )


class ImageFetcher:
    """Fetches images by URL, within the settings."""

    def __init__(self, settings: Fetching, max_bytes: int, resolver: Resolve = resolve) -> None:
        self._settings = settings
        self._max_bytes = max_bytes
        self._turns = asyncio.Semaphore(settings.max_concurrent)
        self._backend = _CheckedBackend(settings, resolver)
        self._ssl = ssl.create_default_context() if settings.enabled else None

    async def fetch(self, url: str, allowance: Allowance | None = None) -> bytes | RequestError:
        """Return the image at a URL, or the error.

        The time limit of the image includes the time for which it waits for its turn.
        """
        if not self._settings.enabled:
            return InvalidRequest(OFF)
        allowance = allowance or Allowance(self._max_bytes)
        try:
            async with asyncio.timeout(self._settings.timeout_s), allowance.turns, self._turns:
                return await self._follow(url, allowance)
        except RequestError as error:
            return error
        except TimeoutError:
            return SourceUnavailable(
                "The image could not be fetched in time. Send the image itself."
            )
        except (*HTTPCORE_ERRORS, OSError, ValueError):
            # the details would reveal what is at the address
            return SourceUnavailable(_FAILED)

    async def _follow(self, url: str, allowance: Allowance) -> bytes:
        for _ in range(self._settings.max_redirects + 1):
            checked = self._checked(url)
            async with (
                self._pool() as pool,
                pool.stream("GET", checked, headers=HEADERS) as response,
            ):
                if response.status not in REDIRECTS:
                    return await self._read(response, allowance)
                location = _header(response, b"location")
            if not location:
                raise SourceUnavailable(_FAILED)
            url = urljoin(url, location)
        raise SourceUnavailable(
            f"The address redirects more than {self._settings.max_redirects} times. "
            "Send the image's own address."
        )

    def _checked(self, text: str) -> httpcore.URL:
        """Return a URL whose scheme, port and host are allowed.

        Its address is checked when the connection is made.
        """
        if not _is_readable(text):
            raise InvalidRequest(
                "An image's address cannot be read as a URL. Percent-encode what is not ASCII."
            )
        try:
            url = urlsplit(text)
            host = (url.hostname or "").rstrip(".")
            port = url.port or {"https": 443, "http": 80}.get(url.scheme, 0)
        except ValueError as error:
            raise InvalidRequest("An image's address cannot be read as a URL.") from error
        self._check_scheme(url.scheme)
        if not _HOST.fullmatch(host) or "@" in url.netloc or port not in self._settings.ports:
            raise SourceUnavailable(_REFUSED)
        if not self._is_allowed(host):
            raise SourceUnavailable(_REFUSED)
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        shown_host = f"[{host}]" if ":" in host else host
        return httpcore.URL(scheme=url.scheme, host=shown_host, port=port, target=target)

    def _check_scheme(self, scheme: str) -> None:
        allowed = ("http", "https") if self._settings.allow_http else ("https",)
        if scheme not in allowed:
            raise SourceUnavailable(f"Images are fetched by {' or '.join(allowed)} only.")

    def _is_allowed(self, host: str) -> bool:
        patterns = self._settings.hosts
        return not patterns or any(
            fnmatch.fnmatchcase(host, pattern.lower()) for pattern in patterns
        )

    def _pool(self) -> httpcore.AsyncConnectionPool:
        """Return a pool for one request.

        Connections are not reused, because the check of their address may be long ago.
        """
        return httpcore.AsyncConnectionPool(
            ssl_context=self._ssl, max_connections=1, network_backend=self._backend, retries=0
        )

    async def _read(self, response: httpcore.Response, allowance: Allowance) -> bytes:
        if response.status != 200:
            raise SourceUnavailable(_FAILED)
        if _header(response, b"content-encoding").lower() not in ("", "identity"):
            raise SourceUnavailable(
                "The image's host sends it with a Content-Encoding. Send the image itself."
            )
        announced = parse_content_length(_header(response, b"content-length"))
        if announced is not None and announced > self._max_bytes:
            raise self._too_large()
        data = bytearray()
        async for part in response.aiter_stream():
            allowance.take(len(part))
            data += part
            if len(data) > self._max_bytes:
                raise self._too_large()
        if not data:
            raise SourceUnavailable(_FAILED)
        return bytes(data)

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"The image at that address has more than {self._max_bytes:,} bytes, "
            "which is the limit. Send a smaller one."
        )


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects only to addresses that may be fetched from, whatever the host's name is."""

    def __init__(self, settings: Fetching, resolver: Resolve) -> None:
        self._networks = tuple(ipaddress.ip_network(network) for network in settings.networks)
        self._resolve = resolver
        self._inner: httpcore.AsyncNetworkBackend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  (httpcore's signature)
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve once, check every address, and connect to the first that responds."""
        addresses = await self._resolve(host.strip("[]"), port)
        is_allowed = all(may_fetch_from(address, self._networks) for address in addresses)
        if not addresses or not is_allowed:
            # the same error as for a host that does not exist, which reveals no internal names
            raise SourceUnavailable(_FAILED)
        for address in addresses[:-1]:
            with contextlib.suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
        return await self._inner.connect_tcp(
            addresses[-1], port, timeout, local_address, socket_options
        )


def _is_readable(text: str) -> bool:
    """Return whether a text is short enough and has only characters of a URL."""
    if len(text) > MAX_URL_CHARACTERS or not text.isascii() or not text.isprintable():
        return False
    return " " not in text and "\\" not in text


def _header(response: httpcore.Response, name: bytes) -> str:
    return next(
        (value.decode("latin-1") for key, value in response.headers if key.lower() == name), ""
    )
