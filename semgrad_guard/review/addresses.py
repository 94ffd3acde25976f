"""Which addresses a webhook may reach: not the network's own services, which would hand out secrets."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

from semgrad_guard.errors import ReviewError

if TYPE_CHECKING:
    from collections.abc import Iterator

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "metadata.goog", "instance-data"})
_METADATA = frozenset(
    ipaddress.ip_address(each) for each in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)
"""Metadata services of cloud providers beside the link-local ones."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def check_host(host: str) -> None:
    """Refuse a host whose name or number is that of a service that webhooks may not reach; no name is looked up.

    Raises:
        ReviewError: it is one.
    """
    plain = host.strip("[]").rstrip(".").lower()
    if plain in _METADATA_NAMES:
        raise _refused(host)
    try:
        found = socket.getaddrinfo(plain, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except OSError:
        return  # a name: `allowed_addresses` looks at what it stands for
    check_addresses(host, [str(each[4][0]) for each in found])


def check_addresses(host: str, addresses: list[str]) -> None:
    """Refuse a host if any of its addresses is refused.

    Raises:
        ReviewError: one is.
    """
    if any(is_refused(each) for each in addresses):
        raise _refused(host)


def is_refused(address: str) -> bool:
    """True for link-local and unspecified addresses, groups and metadata services, however they are written."""
    return any(
        each.is_link_local or each.is_unspecified or each.is_multicast or each in _METADATA
        for each in _meant(ipaddress.ip_address(address.partition("%")[0]))
    )


def _meant(address: Address) -> Iterator[Address]:
    """Yield an address and the IPv4 addresses that it carries within."""
    yield address
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        yield from (each for each in inner if each is not None)


def _refused(host: str) -> ReviewError:
    return ReviewError(
        f"webhooks may not reach {host}: it is a link-local address or a metadata service, which could give secrets "
        f"away; if it is a receiver of yours, allow it with --allow-host {host}"
    )
