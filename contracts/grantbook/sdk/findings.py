"""What `grantbook doctor` makes of answers: findings, each with its remedy. Pure.

What servers say is anybody's text: it is read with care, cut, and shown as text that no terminal obeys. Nothing secret
is shown: of an answer that may hold a client's credentials, never the body.
"""

import ipaddress
import json
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal
from urllib.parse import SplitResult, urlsplit

import httpx
import msgspec
from msgspec import Struct

from grantbook.sdk.lines import shown

Level = Literal["ok", "warning", "problem"]

REGISTER: Final = "/auth/connect/register"
MAX_SHOWN_CHARACTERS: Final = 200
IN_VAIN: Final = ("address", "reachable")
"""Checks after whose problem nothing else can be looked at."""


class Finding(Struct, frozen=True, omit_defaults=True):
    """One thing that was looked at: which, how it is, what was seen, and what to do about it where it is not well."""

    check: str
    level: Level
    seen: str
    remedy: str = ""


class Answer(Struct, frozen=True):
    """What a server answered, as far as it was read."""

    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON; None where it is none."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    @property
    def members(self) -> dict[str, Any]:
        """The members of the JSON object that the body is; none where it is no object."""
        said = self.json
        return said if isinstance(said, dict) else {}

    @property
    def about(self) -> str:
        """Status and type; where to, of a redirect; and how a refusal begins. Printable."""
        text = f"{self.status}, {self.headers.get('content-type', 'no content type')}"
        if 300 <= self.status < 400:
            text += f", to {self.headers.get('location', 'nowhere')}"
        # A success may hold a client's secrets.
        elif self.status >= 400 and self.body:
            text += f": {self.body.decode(errors='replace')!r}"
        return shown(text, MAX_SHOWN_CHARACTERS)


def split(url: str) -> SplitResult | None:
    """An address of the web in its parts; None for what is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts if parts.scheme in {"http", "https"} and parts.hostname else None


def address_finding(url: str) -> Finding:
    """Whether an address can be an installation's, as agents want it."""
    parts = split(url)
    if parts is None or parts.path or parts.query or parts.fragment or "@" in parts.netloc or url.endswith(("?", "#")):
        return Finding(
            "address",
            "problem",
            "the address has a path, a query or a user",
            f"Give the base URL alone: registration is at {REGISTER} below it.",
        )
    if not _is_guarded(parts):
        return Finding("https", "problem", "not https", "Put TLS in front: agents refuse anything else.")
    return Finding("address", "ok", shown(url, MAX_SHOWN_CHARACTERS))


def registration_finding(answer: Answer) -> Finding:
    """Whether a registration of nothing was refused as RFC 7591 section 3.2.2 has it, or who answered instead."""
    if answer.status == 400 and answer.members.get("error") == "invalid_redirect_uri":
        if is_json(answer):
            return Finding("registration", "ok", "reached; what is wrong is refused as RFC 7591 has it")
        return Finding("registration", "problem", answer.about, "The proxy changes Content-Type: pass it on.")
    if answer.status == 429:
        return Finding("registration", "warning", answer.about, LATER)
    remedy = _REMEDIES.get(answer.status, _OTHERWISE)
    return Finding("registration", "problem", answer.about, remedy(answer) if callable(remedy) else remedy)


def cache_finding(refused: Answer) -> Finding:
    """Whether answers of registration are kept out of caches (RFC 7591 section 3.2.1)."""
    if "no-store" in listed(refused, "cache-control"):
        return Finding("not cached", "ok", "Cache-Control: no-store")
    return Finding(
        "not cached",
        "problem",
        shown(f"Cache-Control: {refused.headers.get('cache-control', 'absent')}", MAX_SHOWN_CHARACTERS),
        "The proxy changes Cache-Control: let it through, answers hold credentials.",
    )


def closed_finding(path: str, answer: Answer) -> Finding:
    """Whether what needs a token was refused without one, and to pages of other origins too."""
    check = f"closed {path}"
    if 200 <= answer.status < 300:
        remedy = (
            "Leave this path out of the proxy: metrics are for the inside."
            if path == "/metrics"
            else "Something in front adds a token, or answers itself: it must not."
        )
        return Finding(check, "problem", f"{answer.status} without a token", remedy)
    if "access-control-allow-origin" in answer.headers:
        remedy = f"The proxy adds Access-Control headers: only {REGISTER} may have them."
        return Finding(check, "problem", "open to pages of other origins", remedy)
    if not 400 <= answer.status < 500:
        remedy = "It should be 401, or 404 where this is not for the outside: see what the proxy does with it."
        return Finding(check, "warning", answer.about, remedy)
    return Finding(check, "ok", str(answer.status))


def metadata_addresses(issuer: str) -> list[str]:
    """Where an issuer's metadata is looked for, in the order in which agents do (RFC 8414 sections 3.1 and 5)."""
    parts = urlsplit(issuer)
    host, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    places = [
        f"{host}/.well-known/oauth-authorization-server{path}",
        f"{host}/.well-known/openid-configuration{path}",
        f"{host}{path}/.well-known/openid-configuration",
    ]
    return list(dict.fromkeys(places))


def disagreements(found: Mapping[str, Answer]) -> Iterator[Finding]:
    """Where an issuer's metadata says other than at the first place that has any."""
    first, *others = found
    for place in others:
        names = [
            name
            for name in ("issuer", "registration_endpoint")
            if found[place].members.get(name) != found[first].members.get(name)
        ]
        if names:
            yield Finding(
                "metadata agrees",
                "warning",
                f"{place} says another {' and '.join(names)}",
                "Say the same at each place: agents differ in which they read.",
            )


def metadata_findings(said: dict[str, Any], *, issuer: str, endpoint: str) -> Iterator[Finding]:
    """What the metadata says that agents need, and what it should say instead."""

    def expect(check: str, name: str, good: Callable[[Any], bool], remedy: str, level: Level = "problem") -> Finding:
        value = said.get(name)
        text = f"{name}: {value_shown(value)}" if name in said else f"{name} is missing"
        return Finding(check, "ok", text) if good(value) else Finding(check, level, text, remedy)

    def lists(wanted: str) -> Callable[[Any], bool]:
        return lambda value: isinstance(value, list) and wanted in value

    yield expect(
        "issuer",
        "issuer",
        lambda value: value == issuer,
        f"It must be just {issuer} (RFC 8414 section 3.3), to the slash; or say --issuer as it is.",
    )
    yield expect(
        "registration endpoint",
        "registration_endpoint",
        lambda value: value == endpoint,
        f"Set it to {endpoint}: agents do not guess it, and follow no redirect to it.",
    )
    yield expect(
        "PKCE",
        "code_challenge_methods_supported",
        lists("S256"),
        "Say S256: agents that follow MCP refuse to go on without it.",
    )
    yield expect("response types", "response_types_supported", lists("code"), "Say code.")
    yield expect(
        "grant types",
        "grant_types_supported",
        lambda value: value is None or lists("authorization_code")(value),
        "Say authorization_code and refresh_token.",
    )
    yield expect(
        "public clients",
        "token_endpoint_auth_methods_supported",
        lists("none"),
        "Say none: most agents have no secret, and the default is client_secret_basic.",
        "warning",
    )
    for name in ("authorization_endpoint", "token_endpoint"):
        yield expect(
            name.replace("_", " "),
            name,
            lambda value: isinstance(value, str) and (parts := split(value)) is not None and _is_guarded(parts),
            f"Say where the {name.replace('_', ' ')} is, with https.",
        )
    documents = said.get("client_id_metadata_document_supported") is True
    yield Finding("metadata documents", "ok", "supported" if documents else "not supported; agents register instead")


def _nginx(answer: Answer) -> str:
    kind = "redirects" if answer.status < 400 else "does not pass on"
    return (
        f"The proxy {kind} {REGISTER}: send it to the registry as it is "
        f"(nginx: location {REGISTER} {{ proxy_pass http://registry; }})."
    )


LATER: Final = "This address is over its limit: wait, and look again."
_OTHERWISE: Final = "Something else than the registry answers here: send this path to it."
_BEHIND: Final = "The proxy cannot reach the registry: see that it runs, and where the proxy looks for it."
_REMEDIES: Final[dict[int, str | Callable[[Answer], str]]] = {
    200: "Something else answers here, a page of a web application perhaps: send this path to the registry.",
    **dict.fromkeys((301, 302, 303, 307, 308), _nginx),
    401: "The proxy asks for a login: registration is anonymous, so leave this path out.",
    403: "A firewall refuses agents: let POST of JSON through on this path.",
    404: _nginx,
    405: "The proxy does not let POST through on this path.",
    413: "The proxy refuses even an empty body: see its limits.",
    415: "The proxy changes Content-Type: pass it on.",
    **dict.fromkeys((500, 502, 503, 504), _BEHIND),
}


def unreachable_remedy(causes: list[BaseException]) -> str:
    """What to do about a request that got no answer, by what it failed of."""
    for kind, remedy in _FAILURES.items():
        if any(isinstance(each, kind) for each in causes):
            return remedy
    return "See that the service runs, and the log of the proxy for this request."


_IN_TIME: Final = "No answer in time: a firewall that drops, or a service that hangs; --timeout waits longer."
# The first that fits: a certificate's error is one of TLS, and both are errors of the system.
_FAILURES: Final[dict[type[BaseException], str]] = {
    socket.gaierror: "The name does not resolve here: see DNS, and the spelling.",
    ssl.SSLCertVerificationError: "Agents refuse this certificate too: it must be for this name, not expired, of a "
    "public authority, and sent with its whole chain (nginx: ssl_certificate fullchain.pem;).",
    ssl.SSLError: "There is no TLS, or only an old one, on this port: see the scheme, the port, and the proxy.",
    ConnectionRefusedError: "Nothing listens there: see that proxy and service run, and on which port.",
    httpx.TimeoutException: _IN_TIME,
    TimeoutError: _IN_TIME,
}


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it came from, back to the first."""
    following: BaseException | None = error
    while following is not None:
        yield following
        following = following.__cause__ or following.__context__


def is_json(answer: Answer) -> bool:
    """Whether an answer says that it is JSON."""
    kind: str = answer.headers.get("content-type", "")
    return kind.partition(";")[0].strip().lower() == "application/json"


def listed(answer: Answer, name: str) -> set[str]:
    """The elements of a header that is a list."""
    return {each.strip() for each in answer.headers.get(name, "").split(",")}


def value_shown(value: object) -> str:
    """A member's value as text that may be shown."""
    try:
        return shown(json.dumps(value), MAX_SHOWN_CHARACTERS)
    except RecursionError:
        return "nested too deeply"


def is_open(answer: Answer, origin: str) -> bool:
    """Whether a page of an origin may read an answer: said once, or browsers refuse it."""
    return answer.headers.get_list("access-control-allow-origin") in (["*"], [origin])


def origins(answer: Answer) -> str:
    """What an answer says about who may read it."""
    said = answer.headers.get_list("access-control-allow-origin")
    what = "is missing" if not said else f"is there {len(said)} times" if len(said) > 1 else f"is {said[0]}"
    return shown(f"Access-Control-Allow-Origin {what}", MAX_SHOWN_CHARACTERS)


def _is_guarded(parts: SplitResult) -> bool:
    """Whether nobody listens in between: https, or this machine alone."""
    host = parts.hostname or ""
    try:
        return parts.scheme == "https" or host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
