"""URIs from strangers: one parser, whose decision everything that follows relies on.

What two parsers may read differently is refused rather than repaired, and nothing is ever stripped. So a browser, a
proxy and we agree on the scheme and the host of every URI that got through. The alphabet is that of RFC 3986, which
leaves out spaces, backslashes, quotes, angle brackets, control characters and everything beyond ASCII.
"""

import ipaddress
import re
import unicodedata
import urllib.parse
from functools import lru_cache
from typing import Final

import regex
from msgspec import Struct

MAX_URI_CHARACTERS: Final = 2_048
MAX_HOST_CHARACTERS: Final = 253
MAX_PORT: Final = 65_535
MAX_REMEMBERED: Final = 1_024
"""Each rule asks for the URIs of a client anew, and many clients have the same: a few megabytes at most."""
MAX_DECODINGS: Final = 3
"""Of percent-encoding, in text that is no URI but may be shown as one."""

FOREIGN_SCHEMES: Final = frozenset(
    """
    about acap android-app applescript blob brave cap chrome chrome-error chrome-extension chrome-search
    chrome-untrusted cid data dav devtools dict dns ecmascript edge externalfile feed file filesystem finger ftp
    ftps geo googlechrome googlechromes gopher hcp iax icap im imap info intent ipp ipps irc irc6 ircs
    isolated-app itms-services jar javascript jdbc jscript ldap ldaps livescript mailserver mailto mhtml
    microsoft-edge mid mk mms mocha moz-extension ms-appinstaller ms-browser-extension ms-help ms-its ms-msdt
    ms-officecmd ms-settings news nfs nntp opera pop pres prospero res resource rlogin rsync rtmp rtsp
    safari-extension safari-web-extension search search-ms sftp shell shttp sip sips smb sms snmp ssh svn tel
    telnet tftp tip turn turns unknown urn vbs vbscript view-source vnc wais web-extension ws wss wyciwyg
    x-javascript xmpp z39.50
    """.split()  # noqa: SIM905  as a list it would fill two pages
)
"""Schemes that a browser runs or reads, or that belong to another protocol: none is the web's or an app's own."""

_DROPPED: Final = re.compile(r"[\t\n\r]")
_SCRIPT: Final = re.compile(
    # What pages trim is more than what browsers do: JavaScript's trim takes all that is blank, and U+FEFF.
    # Nothing is tried twice (`*+`): what is matched is as long as somebody likes.
    r"[\x00-\x20\s\ufeff]*+(?:"
    r"(?:java|vb|live)script\s*+:"
    # Every type counts: scripts run in all that ends in +xml, and what no type has is escaped until one has it.
    r"|data\s*+: *+(?:[^ ,;/]*+/[^ ,;]*+)? *+[;,]"
    r"|(?:blob|filesystem)\s*+:\s*+(?:https?|file|null)\b"
    r")",
    re.IGNORECASE,
)
_CHARACTERS: Final = re.compile(r"(?:[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})+\Z")
_ENCODED_CONTROL: Final = re.compile(r"%(?:[01][0-9A-Fa-f]|7[Ff])")
_PARTS: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://([^/?#]*))?([^?#]*)(?:\?[^#]*)?(#.*)?\Z")
_HOST_AND_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:]+\]|[^:\[\]]+)(?::([1-9][0-9]{0,4}))?\Z")
_APP_HOST_AND_PORT: Final = re.compile(r"([A-Za-z0-9._~-]+)(?::([1-9][0-9]{0,4}))?\Z")
_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\Z")
_PUNYCODE: Final = "xn--"
_ENCODABLE: Final = regex.compile(
    r"(?!\p{M})(?:[^\p{Cc}\p{Cf}\p{Cn}\p{Co}\p{Cs}\p{Z}\p{Default_Ignorable_Code_Point}]"
    # The joiners where RFC 5892 appendix A allows them.
    r"|(?<=\p{ccc=9})[\u200c\u200d]"
    r"|(?<=[\p{jt=L}\p{jt=D}]\p{jt=T}*)\u200c(?=\p{jt=T}*[\p{jt=R}\p{jt=D}]))+\Z"
)
_DEVIATIONS: Final = "\u00df\u03c2"
"""Sharp s and final sigma: letters of their own to browsers (UTS 46 section 4, non-transitional processing)."""
_NUMERIC_LABEL: Final = re.compile(r"(?:[0-9]+|0[xX][0-9A-Fa-f]*)\Z")
_OCTET: Final = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_DOTTED_QUAD: Final = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}\Z")


class Uri(Struct, frozen=True):
    """What a URI says, as far as decisions need it.

    `host` is as browsers show it: of `http` and `https` in lower case, an IPv6 address in brackets; of other schemes as
    it stands.
    """

    scheme: str
    host: str | None
    has_fragment: bool
    port: int | None = None
    """As it stands there: a default port that is written out is given, one that is not is None."""


class UriRefused(ValueError):
    """The URI is not taken. The message says why, and repeats nothing of it."""


def parse(text: str) -> Uri:
    """Scheme and host of an absolute URI (RFC 3986 section 3). Raises `UriRefused`.

    `http` and `https` need a host: a domain name, its `xn--` labels well encoded, a dotted quad, or an IPv6 address in
    brackets. Any other scheme is an
    app's own (RFC 8252 section 7.1), with or without a host. `FOREIGN_SCHEMES` and user information are refused.
    """
    if len(text) > MAX_URI_CHARACTERS:
        raise UriRefused(f"longer than {MAX_URI_CHARACTERS} characters")
    if not _CHARACTERS.match(text):
        raise UriRefused("empty, or with a character that RFC 3986 does not allow in a URI")
    if _ENCODED_CONTROL.search(text):
        raise UriRefused("with an encoded control character")
    match = _PARTS.match(text)
    if match is None:
        raise UriRefused("not absolute")
    scheme, authority = match[1].lower(), match[2]
    if scheme in FOREIGN_SCHEMES:
        raise UriRefused("of a scheme that is neither the web's nor an app's own")
    if authority is not None and "@" in authority:
        raise UriRefused("with user information")
    if scheme in {"http", "https"}:
        host, port = _web_host(authority)
        return Uri(scheme, host, match[4] is not None, port)
    if not authority and not match[3]:
        raise UriRefused("nothing but a scheme")
    if not authority:
        return Uri(scheme, None, match[4] is not None)
    host, port = _app_host(authority)
    return Uri(scheme, host, match[4] is not None, port)


@lru_cache(maxsize=MAX_REMEMBERED)
def parsed(text: str) -> Uri | None:
    """The same for what was accepted long ago: None where it is no longer, since a log may be older than a rule."""
    try:
        return parse(text)
    except UriRefused:
        return None


def _web_host(authority: str | None) -> tuple[str, int | None]:
    match = _HOST_AND_PORT.match(authority) if authority else None
    if match is None:
        raise UriRefused("without a host, or with a port that is none")
    host = match[1].lower()
    if host.startswith("["):
        # Browsers show an address in its shortest form (RFC 5952). One spelled otherwise would be another host to us.
        try:
            shortest = ipaddress.IPv6Address(host[1:-1]).compressed
        except ValueError:
            shortest = ""
        if host[1:-1] != shortest:
            raise UriRefused("with an IPv6 address that is none, or is not in its shortest form")
    elif len(host) > MAX_HOST_CHARACTERS or not _NAME.match(host):
        raise UriRefused("with a host that is no domain name")
    elif not all(_is_encoded_well(label) for label in host.split(".") if label.startswith(_PUNYCODE)):
        raise UriRefused("with a host of which a part says that it is encoded, and is not")
    elif _NUMERIC_LABEL.match(host.rpartition(".")[2]) and not _DOTTED_QUAD.match(host):
        # Browsers read 127.1, 0x7f.1 and 2130706433 as addresses (WHATWG URL, "ends in a number").
        raise UriRefused("with an IPv4 address that is no dotted quad")
    return host, _port(match[2])


def _is_encoded_well(label: str) -> bool:
    """Whether an `xn--` label encodes a name, in the one way there is (UTS 46 section 4.1, but for its rule on bidi).

    The standard fails on others. Browsers that do not would go to a host that nobody could show in letters.
    """
    encoded = label.removeprefix(_PUNYCODE).encode("ascii")
    try:
        name = encoded.decode("punycode")
        again = name.encode("punycode")
    except UnicodeError:
        return False
    return (
        again == encoded
        and not name.isascii()
        and _ENCODABLE.match(name) is not None
        and unicodedata.is_normalized("NFC", name)
        and all(each in _DEVIATIONS or unicodedata.normalize("NFKC", each.casefold()) == each for each in name)
    )


def _app_host(authority: str) -> tuple[str, int | None]:
    match = _APP_HOST_AND_PORT.match(authority)
    if match is None:
        raise UriRefused("with a host that apps read differently, or a port that is none")
    return match[1], _port(match[2])


def _port(digits: str | None) -> int | None:
    if digits is None:
        return None
    if int(digits) > MAX_PORT:
        raise UriRefused("with a port that is none")
    return int(digits)


def runs_script(text: str) -> bool:
    """Whether a browser that is given this as a link would run a script, or show what the text itself says.

    For text that is no URI, but is often shown as a link; a scope such as `data:read` is none. What a browser drops is
    dropped here (WHATWG URL: controls and spaces around, tabs and line breaks anywhere), and what a careless decoder
    would undo is undone.
    """
    if ":" not in text and "%" not in text:
        return False  # as most are: there is no scheme in it, nor anything that may come to be one
    for _ in range(MAX_DECODINGS):
        if _SCRIPT.match(_DROPPED.sub("", text)):
            return True
        decoded = urllib.parse.unquote(text, errors="replace")
        if decoded == text:
            return False
        text = decoded
    return False


def is_loopback(host: str | None) -> bool:
    """Whether a host, as `parse` gives it, is this machine: `localhost`, `127.0.0.0/8`, `[::1]` (RFC 8252, 7.3)."""
    if host is None:
        return False
    return host in {"localhost", "[::1]"} or (host.startswith("127.") and _DOTTED_QUAD.match(host) is not None)
