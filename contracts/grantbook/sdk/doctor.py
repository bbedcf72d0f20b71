"""`grantbook doctor`: an installation looked at from outside, as an agent would, with a remedy for all that is wrong.

It sends harmless requests alone: a registration that is refused leaves no trace. Only with `register` it registers a
client, reads it and deletes it again (RFC 7592). Redirects are not followed, answers are read up to a limit, and what
servers say is shown as text that nobody's terminal obeys.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import httpx
import msgspec
from msgspec import Struct

from grantbook.sdk.lines import shown

Level = Literal["ok", "warning", "problem"]

REGISTER: Final = "/auth/connect/register"
MAX_ANSWER_BYTES: Final = 65_536
MAX_SHOWN_CHARACTERS: Final = 200
LARGE_BODY_BYTES: Final = 60 * 1024
PROBE: Final = {
    "client_name": "grantbook doctor",
    "redirect_uris": ["http://localhost/callback"],
    "token_endpoint_auth_method": "none",
}
_REQUESTED_HEADERS: Final = ("content-type", "mcp-protocol-version")
_CLOSED: Final = ("/admin/v1/clients", "/idp/v1/clients/x", "/audit/v1/events", "/revocations/v1/stream", "/metrics")
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


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
    def about(self) -> str:
        """Status, type and the beginning of the body, printable."""
        kind = self.headers.get("content-type", "no content type")
        return shown(f"{self.status}, {kind}: {self.body.decode(errors='replace')!r}", MAX_SHOWN_CHARACTERS)


class Unreachable(Exception):
    """The server did not answer. The message says how."""


class Doctor:
    """Looks at the installation at `url`, whose authorization server is `issuer`, with a page of `origin` in mind."""

    def __init__(self, http: httpx.Client, *, url: str, issuer: str, origin: str, register: bool) -> None:
        self._http = http
        self._url = url.rstrip("/")
        self._issuer = issuer.rstrip("/") if urlsplit(issuer).path in ("", "/") else issuer
        self._origin = origin
        self._register = register

    def look(self) -> Iterator[Finding]:
        """All findings, one after another. The first that makes the rest pointless is the last."""
        yield from self._address()
        try:
            refused = self._post({})
        except Unreachable as error:
            yield Finding(
                "reachable",
                "problem",
                str(error),
                "See that the service runs, that its name resolves from outside, and that its certificate is valid.",
            )
            return
        reached = registration_finding(refused)
        yield reached
        if reached.level != "problem":
            yield from self._registration(refused)
        for part in (self._cross_origin, self._metadata, self._closed, self._readiness, self._probe):
            try:
                yield from part()
            except Unreachable as error:
                name = part.__name__.strip("_").replace("_", " ")
                yield Finding(name, "problem", str(error), "It answered before: see the logs of proxy and service.")

    def _address(self) -> Iterator[Finding]:
        parts = urlsplit(self._url)
        if parts.path or parts.query or parts.fragment or parts.username:
            yield Finding(
                "address",
                "problem",
                "the address has a path, a query or a user",
                "Give the base URL alone: registration is at /auth/connect/register below it.",
            )
        elif parts.scheme != "https" and parts.hostname not in _LOOPBACK:
            yield Finding("address", "problem", "not https", "Put TLS in front: agents refuse anything else.")
        else:
            yield Finding("address", "ok", self._url)

    def _registration(self, refused: Answer) -> Iterator[Finding]:
        if "no-store" in refused.headers.get("cache-control", ""):
            yield Finding("not cached", "ok", "Cache-Control: no-store")
        else:
            yield Finding(
                "not cached",
                "problem",
                f"Cache-Control: {shown(refused.headers.get('cache-control', 'absent'), MAX_SHOWN_CHARACTERS)}",
                "The proxy changes Cache-Control: let it through, answers hold credentials.",
            )
        large = self._post({"client_name": "a" * LARGE_BODY_BYTES})
        if large.status == 413 and not isinstance(large.json, dict):
            yield Finding(
                "large bodies",
                "problem",
                f"the proxy refuses {LARGE_BODY_BYTES} bytes: {large.about}",
                "Raise the proxy's limit to 64 KiB (nginx: client_max_body_size 64k;).",
            )
        elif large.status == 400:
            yield Finding("large bodies", "ok", f"{LARGE_BODY_BYTES} bytes get through")
        else:
            yield Finding("large bodies", "warning", large.about, "See the service's log of this request.")
        other = self._ask("GET", REGISTER)
        if other.status == 405 and "POST" in other.headers.get("allow", ""):
            yield Finding("other methods", "ok", "405 with Allow")
        else:
            yield Finding(
                "other methods",
                "warning",
                other.about,
                "The proxy answers GET itself: send every method of this path to the registry.",
            )

    def _cross_origin(self) -> Iterator[Finding]:
        """Agents that run in a browser, such as MCP Inspector (Fetch standard, CORS protocol)."""
        preflight = self._ask(
            "OPTIONS",
            REGISTER,
            headers={
                "Origin": self._origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": ",".join(_REQUESTED_HEADERS),
            },
        )
        remedy = "Let OPTIONS through to the registry, and add no Access-Control headers in the proxy: it has them."
        allowed = {
            each.strip().lower() for each in preflight.headers.get("access-control-allow-headers", "").split(",")
        }
        methods = {each.strip() for each in preflight.headers.get("access-control-allow-methods", "").split(",")}
        missing = [each for each in _REQUESTED_HEADERS if each not in allowed and "*" not in allowed]
        if not 200 <= preflight.status < 300:
            yield Finding("CORS preflight", "problem", preflight.about, remedy)
        elif not _is_open(preflight, self._origin):
            yield Finding("CORS preflight", "problem", _origins(preflight), remedy)
        elif missing or not methods & {"POST", "*"}:
            seen = f"POST is not allowed, or not the headers {', '.join(missing)}"
            yield Finding("CORS preflight", "problem", seen, remedy)
        else:
            yield Finding("CORS preflight", "ok", "any page may register an agent")
        answer = self._post({}, headers={"Origin": self._origin})
        if _is_open(answer, self._origin):
            yield Finding("CORS answers", "ok", "a page may read why it was refused")
        else:
            yield Finding("CORS answers", "problem", _origins(answer), remedy)

    def _metadata(self) -> Iterator[Finding]:
        """The authorization server's metadata (RFC 8414), where agents look for it (MCP, OpenID Connect Discovery)."""
        places = metadata_addresses(self._issuer)
        found: list[tuple[str, Answer]] = []
        for place in places:
            answer = self._ask("GET", place, headers={"Origin": self._origin})
            if answer.status == 200 and isinstance(answer.json, dict):
                found.append((place, answer))
        if not found:
            yield Finding(
                "metadata",
                "problem",
                f"no authorization server metadata at {' nor at '.join(places)}",
                f"Have the identity provider serve it at {places[0]} (RFC 8414 section 3: between host and path of the "
                "issuer), or say --issuer if it is another.",
            )
            return
        place, answer = found[0]
        if place == places[0]:
            yield Finding("metadata", "ok", place)
        else:
            yield Finding(
                "metadata",
                "warning",
                f"only at {place}",
                f"Serve it at {places[0]} too: some agents look nowhere else (RFC 8414 section 3.1).",
            )
        yield from metadata_findings(answer.json, issuer=self._issuer, endpoint=self._url + REGISTER)
        if _is_open(answer, self._origin):
            yield Finding("metadata CORS", "ok", "a page may read it")
        else:
            yield Finding(
                "metadata CORS",
                "warning",
                _origins(answer),
                "Answer it with Access-Control-Allow-Origin: * : it is public, and agents in browsers need it.",
            )

    def _closed(self) -> Iterator[Finding]:
        """What only those with a token may see."""
        for path in _CLOSED:
            answer = self._ask("GET", path)
            if answer.status == 200:
                yield Finding(
                    f"closed {path}",
                    "problem",
                    "200 without a token",
                    "Something in front adds a token, or answers itself: it must not.",
                )
            elif answer.headers.get("access-control-allow-origin"):
                yield Finding(
                    f"closed {path}",
                    "problem",
                    "open to pages of other origins",
                    f"The proxy adds Access-Control headers: only {REGISTER} may have them.",
                )
            else:
                yield Finding(f"closed {path}", "ok", str(answer.status))

    def _readiness(self) -> Iterator[Finding]:
        answer = self._ask("GET", "/readyz")
        said = answer.json if isinstance(answer.json, dict) else {}
        if answer.status == 200 and said.get("status") == "ready":
            yield Finding("ready", "ok", "the service says that it is")
        elif answer.status == 503:
            reasons = shown(json.dumps(said.get("reasons")), MAX_SHOWN_CHARACTERS)
            yield Finding("ready", "problem", reasons, "The reasons say what is missing; see docs/operating.md.")
        else:
            yield Finding("ready", "ok", "not served to the outside, which is fine")

    def _probe(self) -> Iterator[Finding]:
        """A client that is registered, read, and deleted again."""
        if not self._register:
            return
        answer = self._post(PROBE)
        said = answer.json if isinstance(answer.json, dict) else {}
        if answer.status != 201 or not isinstance(said.get("client_id"), str):
            yield Finding("register", "problem", answer.about, "A plain public client must get in: see the answer.")
            return
        yield Finding("register", "ok", f"registered {shown(said['client_id'], MAX_SHOWN_CHARACTERS)}")
        uri, token = said.get("registration_client_uri"), said.get("registration_access_token")
        if not isinstance(uri, str) or not isinstance(token, str):
            yield Finding(
                "manage",
                "warning",
                "no registration access token was given, so the client is left where it is",
                "Identical public clients are one here (GRANTBOOK_IDEMPOTENT_REGISTRATION): delete it as an admin.",
            )
            return
        if not uri.startswith(f"{self._url}{REGISTER}/"):
            yield Finding(
                "address handed out",
                "problem",
                f"registration_client_uri is {shown(uri, MAX_SHOWN_CHARACTERS)}",
                f"Set GRANTBOOK_URL={self._url} for the registry: what it hands out begins with it.",
            )
            # Never to an address that an answer names: the token is for this installation alone.
            uri = f"{self._url}{REGISTER}/{said['client_id']}"
        own = {"Authorization": f"Bearer {token}"}
        read, deleted = self._ask("GET", uri, headers=own), self._ask("DELETE", uri, headers=own)
        if (read.status, deleted.status) == (200, 204):
            yield Finding("manage", "ok", "read and deleted again with its own token")
        else:
            yield Finding(
                "manage",
                "problem",
                f"GET: {read.about}; DELETE: {deleted.about}",
                f"Send GET, PUT and DELETE of {REGISTER}/... to the registry, with their Authorization header.",
            )

    def _post(self, body: object, headers: dict[str, str] | None = None) -> Answer:
        sent = {"Content-Type": "application/json"} | (headers or {})
        return self._ask("POST", REGISTER, headers=sent, content=msgspec.json.encode(body))

    def _ask(self, method: str, where: str, *, headers: dict[str, str] | None = None, content: bytes = b"") -> Answer:
        url = where if "://" in where else self._url + where
        body = bytearray()
        try:
            with self._http.stream(method, url, headers=headers, content=content or None) as answer:
                for chunk in answer.iter_raw(MAX_ANSWER_BYTES):
                    body += chunk[: MAX_ANSWER_BYTES - len(body)]
                    if len(body) >= MAX_ANSWER_BYTES or (answer.status_code == 200 and where in _CLOSED):
                        break
                return Answer(answer.status_code, answer.headers, bytes(body))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            message = shown(f"{method} {url}: {str(error) or type(error).__name__}", MAX_SHOWN_CHARACTERS)
            raise Unreachable(message) from error


def registration_finding(answer: Answer) -> Finding:
    """Whether a registration of nothing was refused as RFC 7591 section 3.2.2 has it, or who answered instead."""
    said = answer.json if isinstance(answer.json, dict) else {}
    if answer.status == 400 and said.get("error") == "invalid_redirect_uri":
        return Finding("registration", "ok", "reached; what is wrong is refused as RFC 7591 has it")
    if answer.status == 429:
        return Finding("registration", "warning", answer.about, "This address is over its limit: wait, and look again.")
    remedy = _REMEDIES.get(answer.status, _OTHERWISE)
    return Finding("registration", "problem", answer.about, remedy(answer) if callable(remedy) else remedy)


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


def metadata_findings(said: dict[str, Any], *, issuer: str, endpoint: str) -> Iterator[Finding]:
    """What the metadata says that agents need, and what it should say instead."""

    def expect(check: str, name: str, good: Callable[[Any], bool], remedy: str, level: Level = "problem") -> Finding:
        value = said.get(name)
        text = f"{name}: {shown(json.dumps(value), MAX_SHOWN_CHARACTERS)}" if name in said else f"{name} is missing"
        return Finding(check, "ok", text) if good(value) else Finding(check, level, text, remedy)

    def lists(wanted: str) -> Callable[[Any], bool]:
        return lambda value: isinstance(value, list) and wanted in value

    yield expect(
        "issuer",
        "issuer",
        lambda value: value == issuer,
        f"It must be just {issuer} (RFC 8414 section 3.3), to the slash.",
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
            lambda value: (
                isinstance(value, str) and (value.startswith("https://") or urlsplit(value).hostname in _LOOPBACK)
            ),
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


def _listed(answer: Answer, name: str) -> set[str]:
    return {each.strip() for each in answer.headers.get(name, "").split(",")}


def _is_open(answer: Answer, origin: str) -> bool:
    return answer.headers.get_list("access-control-allow-origin") in (["*"], [origin])


def _origins(answer: Answer) -> str:
    said = answer.headers.get_list("access-control-allow-origin")
    what = "is missing" if not said else f"is there {len(said)} times" if len(said) > 1 else f"is {said[0]}"
    return shown(f"Access-Control-Allow-Origin {what}", MAX_SHOWN_CHARACTERS)
