"""`grantbook doctor`: an installation looked at from outside, as an agent would. What answers mean is in `findings`.

It sends harmless requests alone: a registration that is refused leaves no trace. Only with `register` it registers a
client, reads it and deletes it again (RFC 7592). Redirects are not followed, answers are read up to a limit and for a
limited time.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import quote

import httpx
import msgspec

from grantbook.sdk.findings import (
    IN_VAIN,
    LATER,
    MAX_SHOWN_CHARACTERS,
    REGISTER,
    Answer,
    Finding,
    address_finding,
    cache_finding,
    causes_of,
    closed_finding,
    disagreements,
    is_json,
    is_open,
    listed,
    metadata_addresses,
    metadata_findings,
    origins,
    registration_finding,
    unreachable_remedy,
    value_shown,
)
from grantbook.sdk.lines import shown

MAX_ANSWER_BYTES: Final = 65_536
LARGE_BODY_BYTES: Final = 60 * 1024
PROBE: Final = {
    "client_name": "grantbook doctor",
    "redirect_uris": ["http://localhost/callback"],
    "token_endpoint_auth_method": "none",
}
_REQUESTED_HEADERS: Final = ("content-type", "mcp-protocol-version")
_CLOSED: Final = ("/admin/v1/clients", "/idp/v1/clients/x", "/audit/v1/events", "/revocations/v1/stream", "/metrics")


class Unreachable(Exception):
    """The server did not answer. The message says how, `remedy` what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(shown(message, MAX_SHOWN_CHARACTERS))
        self.remedy = remedy


class Doctor:
    """Looks at the installation at `url`, whose authorization server is `issuer`, with a page of `origin` in mind.

    An answer is waited for `seconds` in all, however slowly it comes. Without an issuer it is the URL.
    """

    def __init__(
        self, http: httpx.AsyncClient, *, url: str, issuer: str | None, origin: str, register: bool, seconds: float
    ) -> None:
        self._http = http
        self._url = url.rstrip("/")
        self._issuer = issuer or self._url
        self._origin = origin
        self._register = register
        self._seconds = seconds

    async def look(self) -> AsyncIterator[Finding]:
        """All findings, one after another. A problem of `IN_VAIN` is the last."""
        address = address_finding(self._url)
        yield address
        if address.level == "problem" and address.check in IN_VAIN:
            return
        try:
            refused = await self._post({})
        except Unreachable as error:
            yield Finding("reachable", "problem", str(error), error.remedy)
            return
        reached = registration_finding(refused)
        yield reached
        parts = [self._cross_origin, self._metadata, self._closed, self._readiness, self._probe]
        if reached.level != "problem":
            yield cache_finding(refused)
            parts = [self._large_bodies, self._other_methods, *parts]
        for part in parts:
            try:
                async for finding in part():
                    yield finding
            except Unreachable as error:
                yield Finding(part.__name__.strip("_").replace("_", " "), "problem", str(error), error.remedy)

    async def _large_bodies(self) -> AsyncIterator[Finding]:
        large = await self._post({"client_name": "a" * LARGE_BODY_BYTES})
        if large.status == 413:
            yield Finding(
                "large bodies",
                "problem",
                f"the proxy refuses {LARGE_BODY_BYTES} bytes: {large.about}",
                "Raise the proxy's limit to 64 KiB (nginx: client_max_body_size 64k;).",
            )
        elif large.status == 400:
            yield Finding("large bodies", "ok", f"{LARGE_BODY_BYTES} bytes get through")
        elif large.status == 429:
            yield Finding("large bodies", "warning", large.about, LATER)
        else:
            yield Finding("large bodies", "warning", large.about, "See the proxy's and the service's log of it.")

    async def _other_methods(self) -> AsyncIterator[Finding]:
        got, headed = await self._ask("GET", REGISTER), await self._ask("HEAD", REGISTER, read=False)
        if got.status != 405 or "POST" not in listed(got, "allow"):
            yield Finding(
                "other methods",
                "warning",
                f"GET: {got.about}",
                "The proxy answers GET itself: send every method of this path to the registry.",
            )
        elif headed.status >= 500:
            yield Finding(
                "other methods",
                "warning",
                f"HEAD: {headed.about}",
                "The proxy fails on HEAD: send every method of this path to the registry.",
            )
        else:
            yield Finding("other methods", "ok", "405 with Allow")

    async def _cross_origin(self) -> AsyncIterator[Finding]:
        """Agents that run in a browser, such as MCP Inspector (Fetch standard, CORS protocol)."""
        preflight = await self._ask(
            "OPTIONS",
            REGISTER,
            headers={
                "Origin": self._origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": ",".join(_REQUESTED_HEADERS),
            },
        )
        remedy = "Let OPTIONS through to the registry, and add no Access-Control headers in the proxy: it has them."
        allowed = {each.lower() for each in listed(preflight, "access-control-allow-headers")}
        missing = [each for each in _REQUESTED_HEADERS if not allowed & {each, "*"}]
        if not listed(preflight, "access-control-allow-methods") & {"POST", "*"}:
            missing.insert(0, "POST")
        if not 200 <= preflight.status < 300:
            yield Finding("CORS preflight", "problem", preflight.about, remedy)
        elif not is_open(preflight, self._origin):
            yield Finding("CORS preflight", "problem", origins(preflight), remedy)
        elif missing:
            yield Finding("CORS preflight", "problem", f"not allowed: {', '.join(missing)}", remedy)
        else:
            yield Finding("CORS preflight", "ok", "any page may register an agent")
        answer = await self._post({}, headers={"Origin": self._origin})
        if is_open(answer, self._origin):
            yield Finding("CORS answers", "ok", "a page may read why it was refused")
        else:
            yield Finding("CORS answers", "problem", origins(answer), remedy)

    async def _metadata(self) -> AsyncIterator[Finding]:
        """The authorization server's metadata (RFC 8414), where agents look for it (MCP, OpenID Connect Discovery)."""
        places = metadata_addresses(self._issuer)
        found, missed, remedy = await self._metadata_at(places)
        if not found:
            yield Finding("metadata", "problem", f"no authorization server metadata at {', '.join(missed)}", remedy)
            return
        place, answer = next(iter(found.items()))
        if place == places[0]:
            yield Finding("metadata", "ok", f"{place}, where agents look first")
        else:
            yield Finding(
                "metadata",
                "warning",
                f"only at {place}",
                f"Serve it at {places[0]} too: it is where agents look first, and some nowhere else (RFC 8414 section "
                f"3.1). MCP's order is {', '.join(places)}.",
            )
        for finding in metadata_findings(answer.members, issuer=self._issuer, endpoint=self._url + REGISTER):
            yield finding
        for finding in disagreements(found):
            yield finding
        if not is_json(answer):
            yield Finding(
                "metadata type", "warning", answer.about, "Say Content-Type: application/json (RFC 8414 section 3.2)."
            )
        if is_open(answer, self._origin):
            yield Finding("metadata CORS", "ok", "a page may read it")
        else:
            yield Finding(
                "metadata CORS",
                "warning",
                origins(answer),
                "Answer it with Access-Control-Allow-Origin: * : it is public, and agents in browsers need it.",
            )

    async def _metadata_at(self, places: list[str]) -> tuple[dict[str, Answer], list[str], str]:
        """What was found and where, where nothing was, and the remedy if that is everywhere."""
        found: dict[str, Answer] = {}
        missed: list[str] = []
        remedy = (
            f"Have the identity provider serve it at {places[0]}, with 200 and no redirect (RFC 8414 section 3: "
            "between host and path of the issuer), or say --issuer if it is another."
        )
        for place in places:
            try:
                answer = await self._ask("GET", place, headers={"Origin": self._origin})
            except Unreachable as error:
                missed.append(f"{place} (no answer)")
                remedy = error.remedy
                continue
            if answer.status == 200 and answer.members:
                found[place] = answer
            else:
                missed.append(f"{place} ({answer.status}{', no JSON object' if answer.status == 200 else ''})")
        return found, missed, remedy

    async def _closed(self) -> AsyncIterator[Finding]:
        """What only those with a token may see."""
        for path in _CLOSED:
            answer = await self._ask("GET", path, headers={"Origin": self._origin}, read=False)
            yield closed_finding(path, answer)

    async def _readiness(self) -> AsyncIterator[Finding]:
        answer = await self._ask("GET", "/readyz")
        if answer.status == 200 and answer.members.get("status") == "ready":
            yield Finding("ready", "ok", "the service says that it is")
        elif answer.status == 503:
            reasons = answer.members.get("reasons")
            seen = answer.about if reasons is None else value_shown(reasons)
            yield Finding("ready", "problem", seen, "The reasons say what is missing; see docs/operating.md.")
        else:
            yield Finding("ready", "ok", "not served to the outside, which is fine")

    async def _probe(self) -> AsyncIterator[Finding]:
        """A client that is registered, read, and deleted again."""
        if not self._register:
            return
        answer = await self._post(PROBE)
        client, uri, token = (
            answer.members.get(name) for name in ("client_id", "registration_client_uri", "registration_access_token")
        )
        if answer.status != 201 or not isinstance(client, str):
            remedy = LATER if answer.status == 429 else "A plain public client must get in: see the answer."
            yield Finding("register", "problem", answer.about, remedy)
            return
        yield Finding("register", "ok", shown(f"registered {client}", MAX_SHOWN_CHARACTERS))
        if not isinstance(uri, str) or not isinstance(token, str) or not token.isascii():
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
                shown(f"registration_client_uri is {uri}", MAX_SHOWN_CHARACTERS),
                f"Set GRANTBOOK_URL={self._url} for the registry: what it hands out begins with it.",
            )
            # Never to an address that an answer names: the token is for this installation alone.
            uri = f"{self._url}{REGISTER}/{quote(client, safe='')}"
        own = {"Authorization": f"Bearer {token}"}
        seen, statuses = [], []
        for method in ("GET", "DELETE"):
            # It is deleted even where it could not be read.
            try:
                managed = await self._ask(method, uri, headers=own)
            except Unreachable as error:
                seen.append(str(error))
            else:
                seen.append(f"{method}: {managed.about}")
                statuses.append(managed.status)
        if statuses == [200, 204]:
            yield Finding("manage", "ok", "read and deleted again with its own token")
            return
        left = "" if statuses[-1:] == [204] else f" {shown(client)} is still registered: delete it as an admin."
        yield Finding(
            "manage",
            "problem",
            "; ".join(seen),
            f"Send GET, PUT and DELETE of {REGISTER}/... to the registry, with their Authorization header.{left}",
        )

    async def _post(self, body: object, headers: dict[str, str] | None = None) -> Answer:
        sent = {"Content-Type": "application/json"} | (headers or {})
        return await self._ask("POST", REGISTER, headers=sent, content=msgspec.json.encode(body))

    async def _ask(
        self,
        method: str,
        where: str,
        *,
        headers: dict[str, str] | None = None,
        content: bytes | None = None,
        read: bool = True,
    ) -> Answer:
        url = where if "://" in where else self._url + where
        body = bytearray()
        try:
            async with (
                asyncio.timeout(self._seconds),
                self._http.stream(method, url, headers=headers, content=content) as answer,
            ):
                if read:
                    async for chunk in answer.aiter_raw():
                        body += chunk[: MAX_ANSWER_BYTES - len(body)]
                        if len(body) >= MAX_ANSWER_BYTES:
                            break
                return Answer(answer.status_code, answer.headers, bytes(body))
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            causes = list(causes_of(error))
            why = next((str(each) for each in reversed(causes) if str(each)), type(error).__name__)
            raise Unreachable(f"{method} {url}: {why}", unreachable_remedy(causes)) from error
