"""Images by URL: what may be fetched, what may not whatever way it is written, and what a hostile
host may do.
"""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from serve_app.api.fetching import ImageFetcher, is_url, resolve
from serve_app.api.public_addresses import may_fetch_from
from serve_app.api.sources import ImageSources
from serve_app.config.access import Fetching
from serve_app.config.limits import Limits
from serve_app.errors import InvalidRequest, PayloadTooLarge, SourceUnavailable
from tests.conftest import encoded, random_picture

PICTURE = encoded(random_picture(60, 40), "JPEG")
PUBLIC = "93.184.216.34"
OWN = ("127.0.0.0/8",)

REFUSED_ADDRESSES = [
    # private, loopback, link-local with the clouds' metadata, carrier-grade NAT, this network,
    # benchmarks, reserved, multicast
    *[
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "127.0.0.1",
        "127.255.255.254",
        "169.254.169.254",
        "169.254.0.1",
    ],
    *[
        "168.63.129.16",
        "100.64.0.1",
        "0.0.0.0",
        "0.1.2.3",
        "192.0.0.8",
        "192.0.2.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "240.0.0.1",
    ],
    *["255.255.255.255", "224.0.0.1", "239.255.255.250"],
    # the same in IPv6
    *[
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "2001:db8::1",
        "100::1",
        "fec0::1",
    ],
    # IPv4 carried in IPv6: mapped, compatible, 6to4, Teredo, NAT64
    *[
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:10.0.0.1",
        "::ffff:7f00:1",
        "::127.0.0.1",
        "::a9fe:a9fe",
    ],
    *[
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2001:0:7f00:1:0:0:80ff:fffe",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::7f00:1",
    ],
]


@pytest.mark.parametrize("address", REFUSED_ADDRESSES)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    """Line by line, in every family and disguise."""
    assert not may_fetch_from(address)


@pytest.mark.parametrize(
    "address", [PUBLIC, "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_are_not(address: str) -> None:
    """Also where they are written as IPv6."""
    assert may_fetch_from(address)


def test_a_named_network_is_let_in_and_no_other() -> None:
    """For an object store in the same network; its neighbours stay out."""
    import ipaddress

    networks = [ipaddress.ip_network("10.20.0.0/16")]
    assert may_fetch_from("10.20.3.4", networks)
    assert may_fetch_from("::ffff:10.20.3.4", networks)
    assert not may_fetch_from("10.21.0.1", networks)
    assert not may_fetch_from("127.0.0.1", networks)


SPELLINGS = [
    # every way to write an address, which the machine's own resolver understands
    *[
        "127.0.0.1",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "017700000001",
        "0x7f.1",
        "0",
    ],
    *[
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:0:0:1]",
        "169.254.169.254",
        "2852039166",
        "[fd00:ec2::254]",
    ],
]


@pytest.mark.parametrize("host", SPELLINGS)
async def test_spellings_of_inner_addresses_are_refused(host: str) -> None:
    """By the real resolver: decimal, octal, hexadecimal, short, with a trailing dot, in brackets.

    Nothing is connected to.
    """
    connected: list[Any] = []
    fetcher = ImageFetcher(Fetching(enabled=True, allow_http=True), 1000)
    fetcher._backend._inner = Recorder(connected)
    for scheme in ("http", "https"):
        assert isinstance(await fetcher.fetch(f"{scheme}://{host}/a.jpg"), SourceUnavailable), host
    assert connected == []


class Recorder:
    """A network that notes what is connected to, and fails."""

    def __init__(self, connected: list[Any]) -> None:
        self.connected = connected

    async def connect_tcp(self, host: str, port: int, *_: Any) -> Any:
        self.connected.append((host, port))
        raise OSError


def resolver(*answers: list[str]) -> tuple[Callable[[str, int], Awaitable[list[str]]], list[str]]:
    """Return a resolver that gives these answers one after the other, and what it was asked."""
    left = list(answers)
    asked = []

    async def resolve_next(host: str, port: int) -> list[str]:
        asked.append(host)
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve_next, asked


async def test_a_name_is_resolved_once_and_its_address_is_what_is_connected_to() -> None:
    """A resolver that says a public address first and an inner one next gets no second chance."""
    rebinding, asked = resolver([PUBLIC], ["127.0.0.1"])
    fetcher = ImageFetcher(Fetching(enabled=True), 1000, rebinding)
    connected: list[Any] = []
    fetcher._backend._inner = Recorder(connected)
    assert isinstance(await fetcher.fetch("https://rebind.example/a.jpg"), SourceUnavailable)
    assert (asked, connected) == (["rebind.example"], [(PUBLIC, 443)])


async def test_one_inner_address_among_public_ones_is_enough_to_refuse() -> None:
    """Nothing is connected to, not even the public one."""
    mixed, _ = resolver([PUBLIC, "10.0.0.1"])
    fetcher = ImageFetcher(Fetching(enabled=True), 1000, mixed)
    connected = list[Any]()
    fetcher._backend._inner = Recorder(connected)
    assert isinstance(await fetcher.fetch("https://mixed.example/a.jpg"), SourceUnavailable)
    assert connected == []


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://example.org/a.jpg", {}),  # https only
        ("https://user:secret@example.org/a.jpg", {}),
        ("https://example.org@evil.example/a.jpg", {}),
        ("https://example.org:22/a.jpg", {}),
        ("https://example.org:6379/a.jpg", {}),
        ("https:///a.jpg", {}),
        ("https://evil.example/a.jpg", {"hosts": ("*.example.org", "example.org")}),
        ("https://example.org.evil.example/a.jpg", {"hosts": ("*.example.org", "example.org")}),
        ("https://evil.example;.example.org/a.jpg", {"hosts": ("*.example.org",)}),
        ("https://evil.example%2f.example.org/a.jpg", {"hosts": ("*.example.org",)}),
        ("https://evilexample.org/a.jpg", {"hosts": ("*.example.org", "example.org")}),
    ],
)
async def test_what_the_settings_do_not_allow_is_not_even_resolved(
    url: str, allowed: dict[str, Any]
) -> None:
    """Scheme, user, port and host are checked before anything is asked of the network."""
    never, asked = resolver([PUBLIC])
    assert isinstance(
        await ImageFetcher(Fetching(enabled=True, **allowed), 1000, never).fetch(url),
        SourceUnavailable,
    )
    assert asked == []


@pytest.mark.parametrize(
    "url",
    [
        "https://exa mple.org/",
        "https://example.org/\r\nHost: inner",
        "https://exämple.org/",
        "https://a\\@b/",
        "https://[::1/",
    ],
)
async def test_what_is_no_url_is_refused_as_such(url: str) -> None:
    """Blanks, line ends, back-slashes, what is not ASCII: nothing that two parsers could read in
    two ways.
    """
    assert isinstance(await ImageFetcher(Fetching(enabled=True), 1000).fetch(url), InvalidRequest)


async def test_off_unless_asked_for() -> None:
    """Nothing is fetched by default, and the answer says what to do instead."""
    outcome = await ImageFetcher(Fetching(), 1000).fetch("https://example.org/a.jpg")
    assert isinstance(outcome, InvalidRequest)
    assert "Send the image itself" in outcome.message


def test_what_counts_as_a_url() -> None:
    """By its scheme, whatever its case; base64 and data URIs are none."""
    assert is_url("HTTPS://example.org/a.jpg")
    assert not is_url("data:image/png;base64,aHR0cHM6Ly8=")
    assert not is_url("aHR0cHM6Ly9leGFtcGxl")
    assert not is_url("file:///etc/passwd")


class Host:
    """A real server on this machine; its paths do what a hostile or broken host may do."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.requests = list[str]()
        self.url = f"http://127.0.0.1:{port}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.requests.append(head)
        path = head.split(" ")[1]
        name, _, argument = path.lstrip("/").partition("/")
        try:
            await getattr(self, name)(writer, argument)
        except ConnectionError:
            return  # the other side has heard enough
        finally:
            writer.close()

    async def picture(self, writer: asyncio.StreamWriter, _: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(PICTURE), PICTURE))
        await writer.drain()

    async def moved(self, writer: asyncio.StreamWriter, target: str) -> None:
        writer.write(
            f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
        )
        await writer.drain()

    async def loop(self, writer: asyncio.StreamWriter, _: str) -> None:
        await self.moved(writer, "/loop/")

    async def endless(self, writer: asyncio.StreamWriter, _: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(10_000):
            writer.write(b"x" * 65_536)
            await writer.drain()

    async def announced(self, writer: asyncio.StreamWriter, _: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
        await writer.drain()

    async def slow(self, writer: asyncio.StreamWriter, _: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(200):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    async def zipped(self, writer: asyncio.StreamWriter, _: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc")
        await writer.drain()

    async def missing(self, writer: asyncio.StreamWriter, _: str) -> None:
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\n\r\nsecret")
        await writer.drain()

    async def garbage(self, writer: asyncio.StreamWriter, _: str) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await writer.drain()

    async def nothing(self, writer: asyncio.StreamWriter, _: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = Host(port)
    server = await asyncio.start_server(running.answer, "127.0.0.1", port)
    yield running
    server.close()


def fetcher_of(host: Host, **settings: Any) -> ImageFetcher:
    """Return a fetcher that may read from a server of this machine."""
    values = {
        "enabled": True,
        "allow_http": True,
        "networks": OWN,
        "ports": (host.port,),
        "timeout_s": 5.0,
    } | settings
    return ImageFetcher(Fetching(**values), 100_000)


async def test_a_picture_is_fetched(host: Host) -> None:
    """With the host's name in the request, no credentials, and no compression asked for."""
    assert await fetcher_of(host).fetch(f"{host.url}/picture/a.jpg?width=200#part") == PICTURE
    (head,) = host.requests
    assert head.startswith("GET /picture/a.jpg?width=200 HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{host.port}\r\n" in head
    assert "Accept-Encoding: identity" in head
    assert "authorization" not in head.lower()
    assert "cookie" not in head.lower()


async def test_a_redirect_is_followed_and_checked_like_the_first_address(host: Host) -> None:
    """To a place that is allowed it leads on; to an inner address, another port, scheme or too
    often it does not.
    """
    assert await fetcher_of(host).fetch(f"{host.url}/moved//picture/") == PICTURE
    inner = [
        f"http://10.0.0.1:{host.port}/",
        "http://127.0.0.1:22/",
        "http://169.254.169.254/latest/meta-data/",
        "file:///etc/passwd",
        "//[::1]/",
    ]
    for target in inner:
        host.requests.clear()
        outcome = await fetcher_of(host).fetch(f"{host.url}/moved/{target}")
        assert isinstance(outcome, SourceUnavailable), target
        assert len(host.requests) == 1
    host.requests.clear()
    assert isinstance(
        await fetcher_of(host, max_redirects=2).fetch(f"{host.url}/loop/"), SourceUnavailable
    )
    assert len(host.requests) == 3


@pytest.mark.parametrize("path", ["endless", "announced"])
async def test_bytes_are_bounded(host: Host, path: str) -> None:
    """Whether the host says how many come or not; the stream is cut at the limit."""
    assert isinstance(await fetcher_of(host).fetch(f"{host.url}/{path}/"), PayloadTooLarge)


async def test_time_is_bounded(host: Host) -> None:
    """Also where a byte comes now and then."""
    outcome = await fetcher_of(host, timeout_s=0.2).fetch(f"{host.url}/slow/")
    assert isinstance(outcome, SourceUnavailable)
    assert "in time" in outcome.message


async def test_the_bytes_of_a_request_are_bounded_together(host: Host) -> None:
    """A small request cannot have many large images fetched: they share what one body may have."""
    limits = Limits(max_image_bytes=100_000, max_body_bytes=3 * len(PICTURE))
    found = await ImageSources(limits, fetcher_of(host)).images([f"{host.url}/picture/"] * 5)
    assert [one for one in found if isinstance(one, bytes)] == [PICTURE] * 3
    assert all(isinstance(one, bytes | PayloadTooLarge) for one in found)


async def test_waiting_for_a_turn_counts_as_time(host: Host) -> None:
    """Twenty slow images, two at a time, take no longer than one of them may."""
    fetcher = fetcher_of(host, timeout_s=0.3, max_concurrent=2)
    started_s = asyncio.get_running_loop().time()
    found = await asyncio.gather(*[fetcher.fetch(f"{host.url}/slow/") for _ in range(20)])
    assert all(isinstance(one, SourceUnavailable) for one in found)
    assert (
        asyncio.get_running_loop().time() - started_s < 3.0
    )  # one after the other, it would be 3 s at least


async def test_a_name_server_that_does_not_answer_holds_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Names are looked up in threads of their own, so bodies are read in the event loop's all the
    while.
    """
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(20) and [])
    fetcher = ImageFetcher(Fetching(enabled=True, timeout_s=0.05), 1000)
    found = await asyncio.gather(*[fetcher.fetch("https://slow.example/") for _ in range(40)])
    done = await asyncio.wait_for(asyncio.to_thread(released.is_set), timeout=10)
    released.set()
    assert done is False
    assert all(isinstance(one, SourceUnavailable) for one in found)


async def test_what_is_behind_an_address_is_not_told(host: Host) -> None:
    """A missing page, another protocol, a closed port and a name that is not there are all said the
    same way.
    """
    fetcher = fetcher_of(host)
    urls = [f"{host.url}/{path}/" for path in ("missing", "garbage", "nothing")]
    closed = fetcher_of(host, ports=(1,))
    outcomes = [await fetcher.fetch(url) for url in urls] + [
        await closed.fetch("http://127.0.0.1:1/")
    ]
    messages = {str(outcome) for outcome in outcomes}
    assert len(messages) == 1
    assert "secret" not in messages.pop()
    assert isinstance(await fetcher.fetch(f"{host.url}/zipped/"), SourceUnavailable)


async def test_a_name_that_is_not_there_looks_like_one_that_may_not_be_read() -> None:
    """Else a stranger could list the names of the inner network."""
    inner, _ = resolver(["10.0.0.7"])

    async def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror

    told = [
        str(await ImageFetcher(Fetching(enabled=True), 9, one).fetch("https://inner.example/"))
        for one in (inner, unknown)
    ]
    assert told[0] == told[1]


async def test_the_real_resolver_gives_every_address_once() -> None:
    """As the machine has them."""
    assert set(await resolve("localhost", 80)) <= {"127.0.0.1", "::1"}
