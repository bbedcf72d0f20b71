"""Flags: what an admin should see at a glance about a client, by rules that each have a sentence. All of them are here.

A flag is no verdict. Most of them hold for honest agents too, and together with the redirect hosts they are what tells
them from others. Those that the metadata alone tells are computed here; those that need the history of the register
are computed where that is, by the limits named here.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from publicsuffixlist import PublicSuffixList

from appraisal import names, products, uris
from appraisal.uris import Uri, UriRefused
from grantbook.events import ClientMetadata

NEW_HOST_SECONDS: Final = 86_400
"""A redirect host counts as new for so long after the first client that named it."""
BURST_CLIENTS: Final = 20
BURST_SECONDS: Final = 60
"""So many registrations of one family within so many seconds are many."""
NEVER_USED_DAYS: Final = 30

SENTENCES: Final[dict[str, str]] = {
    "known_name_unknown_host": "Its name claims a known product, and a redirect leads elsewhere than that product's.",
    "look_alike_name": "Its name looks like a known product's, by letters that are others.",
    "mixed_script_name": "Its name mixes letters of scripts that are not written together.",
    "other_site": "One of its pages is on another site than every one of its redirects.",
    "ip_literal_host": "A redirect leads to an IP address instead of a name.",
    "punycode_host": "A redirect host has letters beyond ASCII, which may look like others.",
    "mixed_script_host": "A redirect host mixes scripts, or is written to look like Latin letters.",
    "private_use_authority": "A redirect has a scheme of an app and a host behind it, which apps read differently.",
    "private_use_scheme": "A redirect goes to whichever app on the user's machine claimed its scheme (RFC 8252, 7.1).",
    "loopback_only": "Every redirect stays on the user's machine: any program there can be the one that answers.",
    "new_redirect_host": "No client had been redirected to one of its hosts until less than a day before it came.",
    "many_registrations": f"{BURST_CLIENTS} or more just like it registered within {BURST_SECONDS} seconds before it.",
    "never_used": f"It registered more than {NEVER_USED_DAYS} days ago, and nobody ever let it in.",
}
"""Every flag with its sentence, the gravest first."""
ALL: Final = tuple(SENTENCES)
FROM_HISTORY: Final = ("new_redirect_host", "many_registrations", "never_used")

_PAGES: Final = ("client_uri", "logo_uri", "tos_uri", "policy_uri")
_WEB: Final = frozenset({"http", "https"})
_PUNYCODE: Final = "xn--"
_suffixes: Final = PublicSuffixList()
MAX_REMEMBERED_HOSTS: Final = 4_096


def of_metadata(metadata: ClientMetadata) -> list[str]:
    """The flags that the metadata alone tells, in the order of `ALL`. Total: what does not parse is passed over."""
    redirects = [uri for each in metadata.redirect_uris if (uri := _parsed(each)) is not None]
    hosts = [uri.host for uri in redirects if uri.scheme in _WEB and uri.host is not None]
    far = [host for host in hosts if not uris.is_loopback(host)]
    found = {
        *_of_names(metadata, redirects),
        *_of_pages(metadata, far),
        *(flag for host in far for flag in _of_host(host)),
    }
    if any(uri.scheme not in _WEB for uri in redirects):
        found.add("private_use_scheme")
    if any(uri.scheme not in _WEB and uri.host is not None for uri in redirects):
        found.add("private_use_authority")
    if redirects and len(redirects) == len(hosts) and not far:
        found.add("loopback_only")
    return [flag for flag in ALL if flag in found]


def redirect_hosts(metadata: ClientMetadata) -> list[str]:
    """The hosts on the web that the client is redirected to, each once; those of the user's own machine are none."""
    parsed = (_parsed(each) for each in metadata.redirect_uris)
    hosts = [uri.host for uri in parsed if uri is not None and uri.scheme in _WEB and uri.host is not None]
    return list(dict.fromkeys(host for host in hosts if not uris.is_loopback(host)))


def _of_names(metadata: ClientMetadata, redirects: list[Uri]) -> Iterator[str]:
    tagged = (value for name, value in metadata.localized.items() if name.startswith("client_name#"))
    for name in (metadata.client_name or "", *tagged):
        if names.is_mixed_script(name):
            yield "mixed_script_name"
        for claim in products.claimed(name):
            if not claim.spelled:
                yield "look_alike_name"
    for claim in products.claimed(metadata.client_name or ""):
        if not all(claim.product.is_known_at(uri) for uri in redirects):
            yield "known_name_unknown_host"


def _of_pages(metadata: ClientMetadata, hosts: list[str]) -> Iterator[str]:
    """With redirects to the user's own machine alone there is no site to compare with."""
    sites = {_site(host) for host in hosts}
    tagged = (value for name, value in metadata.localized.items() if name.partition("#")[0] in _PAGES)
    pages = [value for value in (*(getattr(metadata, name) for name in _PAGES), *tagged) if value is not None]
    for page in pages if sites else ():
        uri = _parsed(page)
        if uri is not None and uri.host is not None and _site(uri.host) not in sites:
            yield "other_site"


@lru_cache(maxsize=MAX_REMEMBERED_HOSTS)
def _of_host(host: str) -> tuple[str, ...]:
    if host.startswith("[") or host.rpartition(".")[2].isdigit():
        return ("ip_literal_host",)
    if not any(label.startswith(_PUNYCODE) for label in host.split(".")):
        return ()
    labels = [_shown(label) for label in host.split(".")]
    if any(names.is_mixed_script(label) or _looks_latin(label) for label in labels):
        return ("punycode_host", "mixed_script_host")
    return ("punycode_host",)


def _shown(label: str) -> str:
    """A label of a host as a browser may show it."""
    if not label.startswith(_PUNYCODE):
        return label
    try:
        return label.removeprefix(_PUNYCODE).encode().decode("punycode")
    except UnicodeError:
        return label


def _looks_latin(label: str) -> bool:
    """Whether a label without Latin letters is to a reader one of Latin letters alone."""
    return not label.isascii() and names.plain(label) != names.skeleton(label) and names.skeleton(label).isascii()


@lru_cache(maxsize=MAX_REMEMBERED_HOSTS)
def _site(host: str) -> str:
    """The part of a host that somebody registered, by the public suffix list. An address is a site of its own."""
    if host.startswith("[") or host.rpartition(".")[2].isdigit():
        return host
    return str(_suffixes.privatesuffix(host) or host)


def _parsed(text: str) -> Uri | None:
    """None where it cannot be parsed: a log may be older than the rule that refuses it."""
    try:
        return uris.parse(text)
    except UriRefused:
        return None
