"""What is read out of a client's metadata for lists: its family, its flags, the domains that it redirects to."""

import hashlib
import ipaddress
from typing import Final
from urllib.parse import SplitResult, urlsplit

import msgspec

from grantbook.events import ClientMetadata

FAMILY_HEX_DIGITS: Final = 12
MAX_PARENT_DOMAINS: Final = 10
"""Of a host with more labels the shortest parents count: rows stay small, whatever an agent registers."""
WEB_SCHEMES: Final = ("http", "https")


def family(metadata: ClientMetadata) -> str:
    """The same for registrations that say the same.

    Ports of loopback redirects do not count: a native client takes a free one each time (RFC 8252 section 7.3).
    """
    said = (
        metadata.client_name,
        sorted(_without_loopback_port(each) for each in metadata.redirect_uris),
        sorted(metadata.grant_types),
        metadata.token_endpoint_auth_method,
        metadata.software_id,
    )
    return hashlib.sha256(msgspec.json.encode(said)).hexdigest()[:FAMILY_HEX_DIGITS]


def flags(metadata: ClientMetadata) -> list[str]:
    """What an admin should see at a glance.

    `loopback_only`: every redirect stays on the user's machine. `private_use_scheme`: one goes to whichever application
    claimed its scheme (RFC 8252 section 7.1).
    """
    split = [_split(each) for each in metadata.redirect_uris]
    found = []
    if split and all(_is_loopback(each) for each in split):
        found.append("loopback_only")
    if any(each is not None and each.scheme not in WEB_SCHEMES for each in split):
        found.append("private_use_scheme")
    return found


def redirect_domains(metadata: ClientMetadata) -> list[str]:
    """Hosts of the redirects, each followed by its parent domains. An address has no parents."""
    domains: dict[str, None] = {}
    for uri in metadata.redirect_uris:
        split = _split(uri)
        if split is None or split.scheme not in WEB_SCHEMES or not split.hostname:
            continue
        host = split.hostname.rstrip(".")
        if _is_address(host):
            domains[host] = None
            continue
        domains[host] = None
        parents = host.split(".")[1:][-MAX_PARENT_DOMAINS:]
        for start in range(len(parents)):
            domains[".".join(parents[start:])] = None
    return list(domains)


def _split(uri: str) -> SplitResult | None:
    """The URI's parts. None where it cannot be parsed: a log may be older than the rule that refuses it."""
    try:
        split = urlsplit(uri)
        split.port  # noqa: B018  parsed only when asked for
    except ValueError:
        return None
    return split


def _is_loopback(split: SplitResult | None) -> bool:
    if split is None or split.scheme not in WEB_SCHEMES or not split.hostname:
        return False
    host = split.hostname
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _without_loopback_port(uri: str) -> str:
    split = _split(uri)
    if split is None or split.port is None or not _is_loopback(split):
        return uri
    return split._replace(netloc=split.netloc.removesuffix(f":{split.port}")).geturl()
