"""Where a server may listen, and which addresses a webhook may reach: not those of services that hand out secrets."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from semgrad_guard.errors import ReviewError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from semgrad_guard.errors import SemGradGuardError

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "metadata.goog", "instance-data"})
_METADATA = frozenset(
    ipaddress.ip_address(each) for each in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)
"""Metadata services of cloud providers beside the link-local ones."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_loopback(host: str | None) -> bool:
    """True for a name or address of this machine itself."""
    if host is None or host == "localhost":
        return host is not None
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where a server listens, and its certificate; what is unsafe there, the kinds of servers refuse themselves."""

    host: str = "127.0.0.1"
    port: int = 0
    certificate: Path | None = None
    key: Path | None = None

    @property
    def is_local(self) -> bool:
        """True if only this machine can connect."""
        return is_loopback(self.host)

    @property
    def address(self) -> str:
        """Where a program on this machine, or a person, finds the server."""
        return f"{'https' if self.certificate else 'http'}://{self.host}:{self.port}"

    def check_certificate(self, refusal: type[SemGradGuardError]) -> None:
        """Refuse half of TLS, with an error of the given class."""
        if (self.certificate is None) != (self.key is None):
            msg = "TLS needs both a certificate and its key: give --tls-cert and --tls-key"
            raise refusal(msg)

    def uvicorn_options(self) -> dict[str, Any]:
        """Return the options by which uvicorn listens here; it does not say what it is, nor log what is asked."""
        return {
            "host": self.host,
            "port": self.port,
            "ssl_certfile": self.certificate,
            "ssl_keyfile": self.key,
            "server_header": False,
            "access_log": False,  # addresses may hold what people search for
            "log_level": "warning",
        }


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
