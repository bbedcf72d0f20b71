"""Where a request comes from, for limits alone: the peer's address, or what proxies that we trust say it is.

Anybody can write a forwarding header. So it is read from right to left, each entry believed only because the one who
wrote it, the address before, is a proxy of the operator's; with no proxies configured it is not read at all.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from litestar.connection import ASGIConnection

from door import asked

MAX_HOPS: Final = 16
"""Most proxies in a row that are looked through."""
IPV6_PREFIX_BITS: Final = 64
"""What one customer is given whole: addresses in it are one source."""
NETWORK_BITS: Final = {4: 16, 6: 32}
"""What is around a source: about as much as one provider has of it. By version of IP."""

MAX_REMEMBERED: Final = 4_096

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Proxies:
    """The networks whose `X-Forwarded-For` is believed."""

    # No Struct: msgspec takes no union of the two kinds of network.
    def __init__(self, networks: Sequence[Network] = ()) -> None:
        self.networks: Final = tuple(networks)

    def contain(self, address: Address) -> bool:
        """Whether the address is one of these proxies."""
        return any(address in network for network in self.networks if network.version == address.version)


def proxies(text: str) -> Proxies:
    """Networks or addresses with commas between. Raises `ValueError` for what is none."""
    return Proxies([ipaddress.ip_network(each.strip()) for each in text.split(",") if each.strip()])


class Source(NamedTuple):
    """Where a request comes from, as text: an IPv4 address or an IPv6 /64, and the network around it."""

    address: str
    network: str


UNKNOWN: Final = Source("", "")


def source_of(connection: ASGIConnection[Any, Any, Any, Any], trusted: Proxies) -> Source:
    """The source of a request; `UNKNOWN` where the server knows no peer."""
    client = connection.scope.get("client")
    peer = client[0] if client else ""
    if not trusted.networks:
        return _source_of_peer(peer)
    return _source(_origin(peer, asked.headers(connection, b"x-forwarded-for"), trusted))


def _origin(peer: str, headers: Sequence[str], trusted: Proxies) -> Address | None:
    """The first address, from here outwards, that is no proxy of ours."""
    address = _address(peer)
    for entry in _from_the_right(headers):
        if address is None or not trusted.contain(address):
            break
        said = _address(entry)
        if said is None:
            break  # our own proxy wrote something else than an address: it is the best we know
        address = said
    return address


def _from_the_right(headers: Sequence[str]) -> Iterable[str]:
    # Cut from the right first: how long a forged header is must cost nothing.
    return reversed(",".join(headers).rsplit(",", MAX_HOPS)[-MAX_HOPS:])


def _address(text: str) -> Address | None:
    """An address, in brackets and with a port or not."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


@lru_cache(maxsize=MAX_REMEMBERED)
def _source_of_peer(peer: str) -> Source:
    return _source(_address(peer))


@lru_cache(maxsize=MAX_REMEMBERED)
def _source(address: Address | None) -> Source:
    if address is None:
        return UNKNOWN
    network = str(ipaddress.ip_network((address, NETWORK_BITS[address.version]), strict=False))
    if isinstance(address, ipaddress.IPv6Address):
        return Source(str(ipaddress.ip_network((address, IPV6_PREFIX_BITS), strict=False)), network)
    return Source(str(address), network)
