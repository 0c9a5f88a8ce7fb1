"""Which addresses of the internet images may be fetched from.

Not here: the connection that is checked (`fetching.py`).
"""

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

NOT_PUBLIC: tuple[Network, ...] = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",
        "0.0.0.0/8",
        "100.64.0.0/10",
        "192.0.0.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "240.0.0.0/4",
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/23",
        "2001:db8::/32",
        "3fff::/20",
        "5f00::/16",
        "fec0::/10",
    )
)
"""Networks that are not public, besides those that Python's `is_global` knows, which differ between
Python versions. The first is the host of an Azure machine, which has a public address.
Source: IANA's special-purpose registries; Azure's documentation of 168.63.129.16."""
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""The last 32 bits of such an address are an IPv4 address. Source: RFC 6052."""


def may_fetch_from(text: str, networks: Iterable[Network] = ()) -> bool:
    """Return whether an address is public or in an allowed network.

    An IPv6 address that embeds IPv4 addresses (mapped, 6to4, Teredo, NAT64) counts as those.

    Args:
        text: The address.
        networks: Networks that are allowed although they are not public.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    embedded = _embedded(address)
    for network in networks:
        if address in network or (embedded and all(one in network for one in embedded)):
            return True
    return all(_is_public(one) for one in embedded or [address])


def _is_public(address: Address) -> bool:
    is_special = (
        address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
    )
    is_listed = any(address in network for network in NOT_PUBLIC)
    return address.is_global and not is_special and not is_listed


def _embedded(address: Address) -> list[Address]:
    """Return the IPv4 addresses in an IPv6 address."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    if address in NAT64:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    found: list[Address | None] = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if int(address) >> 32 == 0 and int(address) > 1:  # IPv4-compatible, long deprecated
        found.append(ipaddress.IPv4Address(int(address)))
    return [one for one in found if one is not None]
