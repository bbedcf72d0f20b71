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
from appraisal.uris import Uri
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
    "mixed_script_host": "A redirect host mixes scripts, or is written to look like Latin letters.",
    "ip_literal_host": "A redirect leads to an IP address instead of a name.",
    "other_site": "One of its pages is on another site than each of its redirects on the web, if there are any.",
    "punycode_host": "A redirect host has letters beyond ASCII, which may look like others.",
    "private_use_authority": "A redirect has an app's own scheme and a host: programs may read another host into it.",
    "private_use_scheme": "A redirect goes to whichever app on the user's machine claimed its scheme (RFC 8252, 7.1).",
    "loopback_only": "Every redirect stays on the user's machine: any program there can be the one that answers.",
    "new_redirect_host": "No client had been redirected to one of its hosts until less than a day before it came.",
    "many_registrations": f"At least {BURST_CLIENTS} just like it registered within {BURST_SECONDS} seconds before it.",
    "never_used": f"It registered more than {NEVER_USED_DAYS} days ago, and nobody ever let it in.",
}
"""Every flag with its sentence, the gravest first."""
ALL: Final = tuple(SENTENCES)
TO_REVIEW: Final = (
    "known_name_unknown_host",
    "look_alike_name",
    "mixed_script_name",
    "mixed_script_host",
    "ip_literal_host",
    "other_site",
    "punycode_host",
    "private_use_authority",
)
"""Flags that a person should look at. The others hold for most honest agents of some kind, or pass by themselves."""
FROM_HISTORY: Final = ("new_redirect_host", "many_registrations", "never_used")

_WEB: Final = frozenset({"http", "https"})
_PUNYCODE: Final = "xn--"
_suffixes: Final = PublicSuffixList()
MAX_REMEMBERED_HOSTS: Final = 4_096


def of_metadata(metadata: ClientMetadata) -> list[str]:
    """The flags that the metadata alone tells, in the order of `ALL`. Total: what does not parse is passed over."""
    redirects = [uri for each in metadata.redirect_uris if (uri := uris.parsed(each)) is not None]
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
    if hosts and len(hosts) == len(metadata.redirect_uris) and not far:
        found.add("loopback_only")
    return [flag for flag in ALL if flag in found]


def redirect_hosts(metadata: ClientMetadata) -> list[str]:
    """The hosts on the web that the client is redirected to, each once; those of the user's own machine are none."""
    parsed = (uris.parsed(each) for each in metadata.redirect_uris)
    hosts = [uri.host for uri in parsed if uri is not None and uri.scheme in _WEB and uri.host is not None]
    return list(dict.fromkeys(host for host in hosts if not uris.is_loopback(host)))


def _of_names(metadata: ClientMetadata, redirects: list[Uri]) -> Iterator[str]:
    for name in (metadata.client_name or "", *_tagged(metadata, ("client_name",))):
        if names.is_mixed_script(name):
            yield "mixed_script_name"
        claims = products.claimed(name)
        if not all(claim.spelled for claim in claims):
            yield "look_alike_name"
        # An agent of one product inside of another names both, and is redirected to either.
        if claims and not all(any(claim.product.is_known_at(uri) for claim in claims) for uri in redirects):
            yield "known_name_unknown_host"


def _of_pages(metadata: ClientMetadata, hosts: list[str]) -> Iterator[str]:
    """With redirects to the user's own machine alone there is no site to compare with: an app's page is anywhere."""
    sites = {_site(host) for host in hosts}
    if not sites:
        return
    pages = (metadata.client_uri, metadata.logo_uri, metadata.tos_uri, metadata.policy_uri)
    for page in (*pages, *_tagged(metadata, ("client_uri", "logo_uri", "tos_uri", "policy_uri"))):
        uri = None if page is None else uris.parsed(page)
        if uri is not None and uri.host is not None and _site(uri.host) not in sites:
            yield "other_site"


def _tagged(metadata: ClientMetadata, members: tuple[str, ...]) -> list[str]:
    """The members' values in other languages (RFC 7591 section 2.2)."""
    return [value for name, value in metadata.localized.items() if name.partition("#")[0] in members]


@lru_cache(maxsize=MAX_REMEMBERED_HOSTS)
def _of_host(host: str) -> tuple[str, ...]:
    if _is_address(host):
        return ("ip_literal_host",)
    labels = host.split(".")
    if not any(label.startswith(_PUNYCODE) for label in labels):
        return ()
    # The last label is nobody's choice: some countries' look Latin, and are honest.
    if any(_misleads(_shown(label)) for label in labels[:-1] or labels):
        return ("punycode_host", "mixed_script_host")
    return ("punycode_host",)


def _is_address(host: str) -> bool:
    return host.startswith("[") or host.rpartition(".")[2].isdigit()


def _shown(label: str) -> str:
    """A label of a host as a browser may show it."""
    if not label.startswith(_PUNYCODE):
        return label
    try:
        return label.removeprefix(_PUNYCODE).encode().decode("punycode")
    except UnicodeError:
        return label


def _misleads(label: str) -> bool:
    """Whether a label mixes scripts, or has no Latin letter and is to a reader one of Latin letters alone."""
    if label.isascii():
        return False
    if names.is_mixed_script(label):
        return True
    looks = names.skeleton(label)
    return looks != "" and looks.isascii() and not any("Latin" in names.scripts_of(each) for each in label)


@lru_cache(maxsize=MAX_REMEMBERED_HOSTS)
def _site(host: str) -> str:
    """The part of a host that somebody registered, by the public suffix list. An address is a site of its own."""
    if _is_address(host):
        return host
    return str(_suffixes.privatesuffix(host) or host)
