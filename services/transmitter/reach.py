"""Where SETs may be pushed to: what keeps a receiver's `endpoint_url` from reaching into the operator's own network.

A receiver is known by its token, but is not the operator: it must not have the transmitter call what it cannot call
itself. So a URL is https, its host is one of those allowed, and the address that is connected to was checked: names
are resolved here, once, and the connection goes to that address, so that a name cannot mean another when it matters.
"""

import ipaddress
import socket
from asyncio import get_running_loop
from collections.abc import Sequence
from typing import Final

import httpx

MAX_ADDRESSES: Final = 16
"""Of one name, that are looked at."""

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_GLOBAL_UNICAST: Final = ipaddress.ip_network("2000::/3")
"""All of IPv6 that is routed on the internet; the rest is deprecated, translated or local (IANA's registry)."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class OutOfReach(Exception):
    """The host cannot be pushed to: it has no address, or none that is allowed."""


class Reach:
    """What may be pushed to. `hosts` and `networks` as `Settings` has them; raises `ValueError` for no network.

    With `loopback`, addresses of this machine are allowed, and need no TLS.
    """

    def __init__(self, *, hosts: Sequence[str] = (), networks: Sequence[str] = (), loopback: bool = False) -> None:
        self._hosts = tuple(each.lower() for each in hosts)
        self._networks: tuple[Network, ...] = tuple(ipaddress.ip_network(each) for each in networks)
        self._loopback = loopback

    def check_url(self, text: str) -> None:
        """Raises `ValueError`, with what was expected, for a URL that is never pushed to."""
        if not (text.isascii() and text.isprintable()) or " " in text or "\\" in text:
            raise ValueError("an https URL of visible ASCII characters")
        try:
            url = httpx.URL(text)
        except httpx.InvalidURL as error:
            raise ValueError("an https URL") from error
        if not url.host or url.userinfo or "#" in text or not 0 < (url.port or 443) < 65_536:
            raise ValueError("an https URL with a host, without user and fragment")
        literal = _literal(url.host)
        local = url.host == "localhost" or (literal is not None and literal.is_loopback)
        if url.scheme != "https" and not (url.scheme == "http" and self._loopback and local):
            raise ValueError("an https URL")
        if self._hosts and not any(_is_host(url.host, each) for each in self._hosts):
            raise ValueError("a URL of a host that the operator allows")
        if literal is not None and not self.allows(literal):
            raise ValueError("a URL of a public address")

    def allows(self, address: Address) -> bool:
        """Whether an address may be connected to."""
        if any(address in each for each in self._networks if each.version == address.version):
            return True
        if self._loopback and address.is_loopback:
            return True
        if isinstance(address, ipaddress.IPv6Address) and not (
            address in _GLOBAL_UNICAST or address in _NAT64 or address.ipv4_mapped is not None
        ):
            return False
        return all(each.is_global and not each.is_multicast for each in (address, *_inside(address)))

    async def address_of(self, url: httpx.URL) -> str:
        """The address to connect to for a URL. Raises `OutOfReach`."""
        try:
            found = await get_running_loop().getaddrinfo(
                url.host, url.port or (443 if url.scheme == "https" else 80), type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError) as error:
            raise OutOfReach("its host has no address") from error
        addresses = [ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in found[:MAX_ADDRESSES]]
        allowed = next((each for each in addresses if self.allows(each)), None)
        if allowed is None:
            raise OutOfReach("its host has no address that may be pushed to")
        return str(allowed)


def _is_host(host: str, allowed: str) -> bool:
    return host.endswith(allowed) if allowed.startswith(".") else host == allowed


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _inside(address: Address) -> tuple[Address, ...]:
    """IPv4 addresses that an IPv6 address leads to: mapped (RFC 4291), 6to4 (RFC 3056), Teredo, NAT64 (RFC 6052)."""
    if isinstance(address, ipaddress.IPv4Address):
        return ()
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return tuple(each for each in found if each is not None)
