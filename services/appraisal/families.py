"""Families: clients that are one piece of software, as far as their registrations tell."""

import hashlib
import ipaddress
import unicodedata
from typing import Final

import msgspec

from appraisal import uris
from grantbook.events import ClientMetadata

FAMILY_HEX_DIGITS: Final = 32
"""128 bits: nobody finds a registration of another name that falls into a family, to have both deleted."""
MAX_PARENT_DOMAINS: Final = 10
"""Of a host with more labels the shortest parents count: rows stay small, whatever an agent registers."""
WEB_SCHEMES: Final = ("http", "https")


def family(metadata: ClientMetadata) -> str:
    """A fingerprint of what identifies a piece of software: the same for registrations that say the same of it.

    Ports of loopback redirects do not count: a native client takes a free one each time (RFC 8252 section 7.3). Nor
    does the case of the name, nor how the client became known.
    """
    said = (
        None if metadata.client_name is None else _folded(metadata.client_name),
        sorted(_without_loopback_port(each) for each in metadata.redirect_uris),
        sorted(metadata.grant_types),
        sorted(metadata.response_types),
        metadata.token_endpoint_auth_method,
        metadata.application_type,
        metadata.software_id,
    )
    return hashlib.sha256(msgspec.json.encode(said)).hexdigest()[:FAMILY_HEX_DIGITS]


def redirect_domains(metadata: ClientMetadata) -> list[str]:
    """Hosts of the redirects, each followed by its parent domains. An address has no parents, and no brackets."""
    domains: dict[str, None] = {}
    for text in metadata.redirect_uris:
        uri = uris.parsed(text)
        if uri is None or uri.scheme not in WEB_SCHEMES or uri.host is None:
            continue
        host = uri.host.strip("[]")
        domains[host] = None
        parents = [] if _is_address(host) else host.split(".")[1:][-MAX_PARENT_DOMAINS:]
        for start in range(len(parents)):
            domains[".".join(parents[start:])] = None
    return list(domains)


def _folded(name: str) -> str:
    """Without case, in NFC: before too, since a log may be older than the rule that names are kept so."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _is_address(host: str) -> bool:
    if ":" not in host and not host[-1:].isdigit():
        return False  # as nearly all: finding that out the long way is most of what their domains take
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _without_loopback_port(text: str) -> str:
    uri = uris.parsed(text)
    if uri is None or uri.scheme not in WEB_SCHEMES or uri.port is None or not uris.is_loopback(uri.host):
        return text
    start = text.index("://") + len("://") + len(uri.host or "")
    return text[:start] + text[start + len(f":{uri.port}") :]
