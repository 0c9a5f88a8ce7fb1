"""Images by URL: only public addresses, checked where the connection is made, bounded in bytes,
time and redirects.

A name is resolved once, every address that it has is checked, and the connection goes to one of
those: nothing is resolved again that could by then be another address. Redirects are followed here,
one by one, each checked like the first. Reasons for a refusal are told without what was found
behind the address.
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
from serve_app.config.access import Fetching
from serve_app.errors import InvalidRequest, PayloadTooLarge, RequestError, SourceUnavailable

logger = logging.getLogger(__name__)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]
"""From a host and a port to its addresses."""

MAX_URL_CHARACTERS = 4_096
MAX_RESOLVING = 8
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*|[0-9a-f:.]+", re.IGNORECASE)
REDIRECTS = {301, 302, 303, 307, 308}
NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        *(
            "168.63.129.16/32",
            "0.0.0.0/8",
            "100.64.0.0/10",
            "192.0.0.0/24",
            "192.88.99.0/24",
            "198.18.0.0/15",
            "240.0.0.0/4",
        ),
        *(
            "64:ff9b:1::/48",
            "100::/64",
            "2001::/23",
            "2001:db8::/32",
            "3fff::/20",
            "5f00::/16",
            "fec0::/10",
        ),
    )
)
"""Besides what Python's `is_global` knows, which changed from version to version, and the host of
an Azure machine, which has a public address. Source: IANA's special-purpose registries; Azure's
documentation of 168.63.129.16."""
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""Source: RFC 6052. An IPv4 address stands in the last 32 bits."""
HEADERS = [
    ("User-Agent", f"siglip-serve/{__version__}"),
    ("Accept", "image/*"),
    ("Accept-Encoding", "identity"),
]

_REFUSED = "Images are not fetched from that address."
_FAILED = "The image could not be fetched. Check the address, or send the image itself."
OFF = "Images are not fetched by URL here. Send the image itself, or as a data URI."


def is_url(text: str) -> bool:
    """Return whether a text says where an image is rather than being one."""
    return text[:8].lower().startswith(("http://", "https://"))


_RESOLVING = ThreadPoolExecutor(MAX_RESOLVING, thread_name_prefix="resolve")
"""Threads of their own: a name server that does not answer would hold the event loop's, which
others' bodies are read in."""


async def resolve(host: str, port: int) -> list[str]:
    """Return every address of a host, as the machine's resolver has them."""
    look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_RESOLVING, look_up)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Allowance:
    """What one request may have fetched, all its images together: so many bytes, and so many at the
    same time.
    """

    def __init__(self, max_bytes: int, at_once: int = 8) -> None:
        self._left = self._most = max_bytes
        self.turns = asyncio.Semaphore(at_once)

    def take(self, count: int) -> None:
        """Use some up; raises `PayloadTooLarge` if there are not so many."""
        self._left -= count
        if self._left < 0:
            raise PayloadTooLarge(
                f"The images of the request have more than {self._most:,} bytes together, which is the limit. Send fewer or smaller ones."
            )


class ImageFetcher:
    """Fetches images by URL, as far as the settings allow."""

    def __init__(self, settings: Fetching, max_bytes: int, resolver: Resolve = resolve) -> None:
        self._settings = settings
        self._max_bytes = max_bytes
        self._turns = asyncio.Semaphore(settings.max_concurrent)
        self._backend = _CheckedBackend(settings, resolver)
        self._ssl = ssl.create_default_context() if settings.enabled else None

    async def fetch(self, url: str, allowance: Allowance | None = None) -> bytes | RequestError:
        """Return the bytes behind a URL, or why there are none; waiting for a turn counts as time
        of the image.
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
        except (
            httpcore.NetworkError,
            httpcore.TimeoutException,
            httpcore.ProtocolError,
            httpcore.ConnectionNotAvailable,
            OSError,
            ValueError,
        ):
            return SourceUnavailable(
                _FAILED
            )  # what exactly went wrong would tell what is behind the address

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
            f"The address redirects more than {self._settings.max_redirects} times. Send the image's own address."
        )

    def _checked(self, text: str) -> httpcore.URL:
        """Return a URL whose scheme, port and host may be fetched from; its address is checked when
        it is connected to.
        """
        if (
            len(text) > MAX_URL_CHARACTERS
            or not text.isascii()
            or not text.isprintable()
            or " " in text
            or "\\" in text
        ):
            raise InvalidRequest(
                "An image's address cannot be read as a URL. Percent-encode what is not ASCII."
            )
        try:
            url = urlsplit(text)
            settings = self._settings
            host = (url.hostname or "").rstrip(".")
            port = url.port or {"https": 443, "http": 80}.get(url.scheme, 0)
        except ValueError as error:
            raise InvalidRequest("An image's address cannot be read as a URL.") from error
        if url.scheme != "https" and not (url.scheme == "http" and settings.allow_http):
            raise SourceUnavailable(
                f"Images are fetched by {'http or https' if settings.allow_http else 'https'} only."
            )
        if not _HOST.fullmatch(host) or "@" in url.netloc or port not in settings.ports:
            raise SourceUnavailable(_REFUSED)
        if settings.hosts and not any(
            fnmatch.fnmatchcase(host, pattern.lower()) for pattern in settings.hosts
        ):
            raise SourceUnavailable(_REFUSED)
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        return httpcore.URL(
            scheme=url.scheme, host=f"[{host}]" if ":" in host else host, port=port, target=target
        )

    def _pool(self) -> httpcore.AsyncConnectionPool:
        """Return a pool for one request: connections are not kept, so an address that was checked
        long ago is not used.
        """
        return httpcore.AsyncConnectionPool(
            ssl_context=self._ssl, max_connections=1, network_backend=self._backend, retries=0
        )

    async def _read(self, response: httpcore.Response, allowance: Allowance) -> bytes:
        if response.status != 200:
            raise SourceUnavailable(_FAILED)
        if _header(response, b"content-encoding").lower() not in ("", "identity"):
            raise SourceUnavailable(
                "The image's host sends it compressed once more. Send the image itself."
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
            f"The image at that address has more than {self._max_bytes:,} bytes, which is the limit. Send a smaller one."
        )


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connections to addresses that may be fetched from, and to no other, whatever name they were
    asked for by.
    """

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
        """Resolve once, check every address, connect to the first that answers."""
        addresses = await self._resolve(host.strip("[]"), port)
        if not addresses or not all(
            may_fetch_from(address, self._networks) for address in addresses
        ):
            raise SourceUnavailable(
                _FAILED
            )  # as if it were not there: names of an inner network are not told
        for address in addresses[:-1]:
            with contextlib.suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
        return await self._inner.connect_tcp(
            addresses[-1], port, timeout, local_address, socket_options
        )


def may_fetch_from(
    text: str, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network] = ()
) -> bool:
    """Return whether an address is public, or in one of some networks that are allowed all the
    same.

    What stands in an IPv6 address that carries an IPv4 one counts too: mapped, 6to4, Teredo, NAT64.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    inner = _carried(address)
    if any(
        address in network or (inner and all(one in network for one in inner))
        for network in networks
    ):
        return True
    return all(_is_public(one) for one in inner or [address])


def _is_public(address: Address) -> bool:
    special = (
        address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
    )
    return (
        address.is_global and not special and not any(address in network for network in NOT_PUBLIC)
    )


def _carried(address: Address) -> list[Address]:
    """Return the IPv4 addresses in an IPv6 one."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    if address in NAT64:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    found: list[Address | None] = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if int(address) >> 32 == 0 and int(address) > 1:  # IPv4-compatible, long deprecated
        found.append(ipaddress.IPv4Address(int(address)))
    return [one for one in found if one is not None]


def _header(response: httpcore.Response, name: bytes) -> str:
    return next(
        (value.decode("latin-1") for key, value in response.headers if key.lower() == name), ""
    )
