"""Pages as HTML: templates, the headers that every page carries, and what templates may call.

Everything that comes from outside is text, and is escaped by the templates' engine. There is no way to switch that off
here, and no script and no style but our own files may run: names of clients are chosen by strangers.
"""

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import jinja2
from litestar import Request, Response
from litestar.datastructures import State
from msgspec import UNSET

from appraisal import flags, uris
from console import plots, times
from grantbook import subjects

HERE: Final = Path(__file__).parent
STATIC: Final = HERE / "static"
FRAGMENT: Final = "Grantbook-Fragment"
"""Header of our own script's requests: the page's content is wanted without what is around it."""
LIVE: Final = "live"
"""Its value where a page looks again by itself, and nobody is known to look."""
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    # Not `no-referrer`: with it browsers send `Origin: null` along with our own forms.
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Vary": "Cookie, Grantbook-Fragment",
}
_PLAIN_PATH: Final = re.compile(r"(?:/[A-Za-z0-9~_-]+)+\Z")
HTML: Final = "text/html; charset=utf-8"

WORDS: Final[Mapping[str, str]] = {
    "known_name_unknown_host": "known name, unknown host",
    "look_alike_name": "look-alike name",
    "mixed_script_name": "mixed scripts in the name",
    "mixed_script_host": "mixed scripts in a host",
    "ip_literal_host": "IP address as host",
    "other_site": "pages on another site",
    "punycode_host": "letters beyond ASCII in a host",
    "private_use_authority": "app scheme with a host",
    "private_use_scheme": "app scheme",
    "loopback_only": "user's machine only",
    "new_redirect_host": "new host",
    "many_registrations": "registered in a burst",
    "never_used": "never used",
}
"""Flags in words; `appraisal.flags.SENTENCES` has a sentence for each."""
SOURCES: Final[Mapping[str, str]] = {"dcr": "registered itself", "cimd": "metadata document", "manual": "by an admin"}
GRAVE: Final = frozenset(
    {"known_name_unknown_host", "look_alike_name", "mixed_script_name", "mixed_script_host", "private_use_authority"}
)
"""Flags that are shown as warnings."""


def _static_urls() -> dict[str, str]:
    return {
        file.name: f"/console/static/{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}/{file.name}"
        for file in sorted(STATIC.iterdir())
        if file.is_file()
    }


STATIC_URLS: Final = _static_urls()
"""Each of our files by its name: a changed file is another URL, so browsers may keep what they have."""


def hosts(redirect_uris: list[str]) -> list[str]:
    """Where a client sends people, as the parser that let its redirects in reads them; each once."""
    found: dict[str, None] = {}
    for each in redirect_uris:
        parsed = uris.parsed(each)
        if parsed is None:
            found["not readable"] = None
        elif parsed.scheme in {"http", "https"} and parsed.host is not None:
            found["this user's machine" if uris.is_loopback(parsed.host) else parsed.host] = None
        else:
            found[f"{parsed.scheme}: (an app)"] = None
    return list(found)


def address(path: str, query: Mapping[str, Any] | None = None, **changes: Any) -> str:
    """A path with its query. Members that are empty, false or unset are left out."""
    said = {**(query or {}), **changes}
    kept = {name: value for name, value in said.items() if value and value is not UNSET}
    return f"{path}?{urlencode(kept, doseq=True)}" if kept else path


def key_of(item: Any) -> str:
    """The name of a client in paths."""
    return str(item.client_id if item.client_key is UNSET else item.client_key)


def in_path(id_or_key: str) -> str:
    """What names a client, a user or a grant in a path, whatever it is: nothing of it can lead to another path."""
    return subjects.token_in_path(id_or_key)


def segment(text: str) -> str:
    """A name as one segment of a path."""
    return quote(text, safe="")


def is_plain_path(path: str) -> bool:
    """Whether it is a path and nothing else, which no browser can read as leading elsewhere."""
    return _PLAIN_PATH.match(path) is not None


def _set(value: object) -> bool:
    return not (value is UNSET or value is None or isinstance(value, jinja2.Undefined))


_environment: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
_environment.globals.update(
    static=STATIC_URLS.__getitem__,
    address=address,
    hosts=hosts,
    key_of=key_of,
    in_path=in_path,
    token=subjects.token,
    words=WORDS,
    sentences=flags.SENTENCES,
    all_flags=flags.ALL,
    grave=GRAVE,
    sources=SOURCES,
)
_environment.filters.update(
    number=lambda value: f"{value:,}",
    spark=plots.spark,
    day=times.day,
    ago=times.ago,
    exact=times.exact,
    iso=times.iso,
)
_environment.tests["set"] = _set


def html(template: str, status_code: int = 200, /, **context: Any) -> Response[bytes]:
    """A page made of a template. `layout` in the context says what stands around it."""
    body = _environment.get_template(template).render(**context)
    return Response(body.encode(), status_code=status_code, media_type=HTML, headers=dict(HEADERS))


def layout_for(request: Request[Any, Any, State]) -> str:
    """The template around the content: the whole page, or nothing where our script asked for a part."""
    return "fragment.html" if request.headers.get(FRAGMENT) else "page.html"


def see_other(path: str) -> Response[bytes]:
    """What a form is answered with, once it was done: look there (RFC 9110 section 15.4.4)."""
    return Response(b"", status_code=303, headers={**HEADERS, "Location": path})


def seconds_between(earlier: datetime, later: datetime) -> float:
    """Never less than 0: clocks of two machines differ."""
    return max(0.0, (later - earlier).total_seconds())
