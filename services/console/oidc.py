"""Signing in at an OpenID provider: the authorization code flow of OpenID Connect Core 1.0, with PKCE (RFC 7636).

The provider says who somebody is. Which of its people are admins is a setting, and nobody is by default.

Authlib writes what is sent and joserfc verifies what comes back. Authlib's own clients are not used: they read an
answer however long it is, and want an HTTP library that nothing else here needs.
"""

import asyncio
import base64
import hashlib
import hmac
import math
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, Literal, TypeVar
from urllib.parse import quote_plus, unquote, urlsplit

import httpx
import msgspec
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc.errors import JoseError
from joserfc.jwa import JWSAlgModel
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey
from joserfc.jws import JWSRegistry, extract_compact, validate_compact
from joserfc.jwt import JWTClaimsRegistry
from msgspec import Struct

from door.roles import MAX_NAME_CHARACTERS

ALGORITHMS: Final = frozenset({"RS256", "PS256", "ES256", "EdDSA", "Ed25519"})
"""Of ID tokens; those of them that the provider's metadata offers. All asymmetric: a public key is never a secret."""
LEEWAY_SECONDS: Final = 60
"""How far the provider's clock may differ from ours."""
PENDING_SECONDS: Final = 600.0
"""For a person at the provider's pages."""
ASK_SECONDS: Final = 5.0
"""For one answer of the provider."""
MAX_ANSWER_BYTES: Final = 256 * 1024
FRESH_SECONDS: Final = 900.0
"""After so long metadata and keys are asked for again: a key that the provider took back stops counting."""
KEEP_SECONDS: Final = 24 * 3_600.0
"""With its metadata or keys away, those that were known count for so long."""
COOL_DOWN_SECONDS: Final = 30.0
"""They are not asked for more often, whatever ID tokens say."""
FIRST_SECONDS: Final = 1.0
"""Nor more often than that while none are known yet, however many people want to sign in."""
MAX_KEYS: Final = 64
MIN_RSA_BITS: Final = 2_048
"""RFC 7518 section 3.3."""
MAX_URL_CHARACTERS: Final = 2_048
MAX_CODE_CHARACTERS: Final = 4_096
MAX_SUBJECT_CHARACTERS: Final = 255
"""OpenID Connect Core section 2."""
SECRET_BYTES: Final = 32
"""Of state, nonce and code verifier; 43 characters, the least that RFC 7636 section 4.1 allows."""
MARK_CHARACTERS: Final = 10
"""Of the hash that tells apart people whose names had to be changed."""
HOME: Final = "/console"

_LOOPBACK: Final = {"localhost", "127.0.0.1", "::1"}
_URL: Final = re.compile(r"[!-\[\]-~]+\Z")
"""ASCII without blanks, control characters and backslashes: parsers do not agree on the others."""
_PATH: Final = re.compile(
    r"/console(?:/[A-Za-z0-9._~%!$&'()*+,;=:@-]+)*/?(?:\?[A-Za-z0-9._~%!$&'()*+,;=:@/?\[\]{}|^-]*)?\Z"
)
_CODE: Final = re.compile(rf"[ -~]{{1,{MAX_CODE_CHARACTERS}}}\Z")
"""RFC 6749 appendix A.11."""
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._@+-]")
_MARKED: Final = re.compile(rf"-[0-9a-f]{{{MARK_CHARACTERS}}}\Z")
_OURS: Final = {"console", "local-admin"}
"""Names that the console itself records under."""
_RETRY: Final = {"server_error", "temporarily_unavailable"}
_OKP_ALGORITHMS: Final = frozenset({"EdDSA", "Ed25519"})

T = TypeVar("T")


class SignInRefused(Exception):
    """This person is not let in. Its text says why, to that person, and has nothing in it that came from outside."""


class ProviderAway(Exception):
    """The provider cannot be used right now, or as it is set up. Its text says why, in the same way."""


class OidcSettings(Struct, frozen=True, kw_only=True):
    """The provider, the console there, and which people are admins. Raises ValueError for what is not safe.

    Somebody is an admin whose claim `admin_claim` is one of `admin_values`, or is a list with one of them in it.
    `email` counts only where the provider has verified it.
    """

    issuer: str
    """As the provider writes it, to the last slash. https, but for one's own machine."""
    client_id: str
    client_secret: str | None = None
    """None for a public client: PKCE alone then binds the code to us."""
    redirect_uri: str
    scopes: str = "openid email profile"
    admin_claim: str
    admin_values: tuple[str, ...]

    def __post_init__(self) -> None:
        if not _is_safe(self.issuer, plain=True) or "?" in self.issuer:
            raise ValueError("the issuer is an https URL without a query, or an http one of this machine")
        if not _is_safe(self.redirect_uri, plain=True):
            raise ValueError("the redirect URI is an https URL, or an http one of this machine")
        if not self.client_id or self.client_secret == "":
            raise ValueError("the client has an id, and no secret or one that is not empty")
        if "openid" not in self.scopes.split():
            raise ValueError("the scopes include openid")
        if not self.admin_claim or not self.admin_values or not all(self.admin_values):
            raise ValueError("who is an admin is said by a claim and its values, none of them empty")

    def __repr__(self) -> str:
        """Without the secret: settings end up in tracebacks."""
        return f"OidcSettings(issuer={self.issuer!r}, client_id={self.client_id!r}, ...)"


class Admin(Struct, frozen=True):
    """Somebody who signed in and is an admin."""

    name: str
    """What they do is recorded under it: their `preferred_username`, else their verified e-mail address, else `sub`."""
    subject: str
    issuer: str


class Pending(Struct):
    """A sign-in that was begun. Kept by the browser that began it, sealed, and never in a URL."""

    state: str
    nonce: str
    code_verifier: str
    return_to: str
    begun_at: float
    """Monotonic seconds."""
    spent: bool = False
    """The browser came back: it counts for that one time."""


class Oidc:
    """Signs people in at one provider.

    `clock` gives POSIX seconds, for what ID tokens say of time; `monotonic` counts how long things took. Without `http`
    it opens connections of its own for each sign-in. What the provider says of itself is fetched once in a while,
    however many people, or machines, want to sign in.
    """

    def __init__(
        self,
        settings: OidcSettings,
        *,
        http: httpx.AsyncClient | None,
        random: Callable[[int], bytes],
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._line = _Line(http)
        self._random = random
        self._clock = clock
        self._monotonic = monotonic
        self._metadata = _Kept(self._fetch_metadata, monotonic)
        self._keys = _Kept(self._fetch_keys, monotonic)

    async def begin(self, return_to: str | None) -> tuple[str, Pending]:
        """Where to send a browser (Core section 3.1.2.1), and what to remember of it. Raises `ProviderAway`."""
        metadata = await self._metadata.get()
        state, nonce, code_verifier = self._secret(), self._secret(), self._secret()
        url: str = prepare_grant_uri(
            metadata.authorization_endpoint,
            client_id=self._settings.client_id,
            response_type="code",
            redirect_uri=self._settings.redirect_uri,
            scope=self._settings.scopes,
            state=state,
            nonce=nonce,
            code_challenge=create_s256_code_challenge(code_verifier),
            code_challenge_method="S256",
        )
        return url, Pending(state, nonce, code_verifier, safe_return_to(return_to), self._monotonic())

    async def finish(self, pending: Pending, query: Mapping[str, str]) -> Admin:
        """Who came back, with the parameters of the callback. Raises `SignInRefused` and `ProviderAway`. Total."""
        spent, pending.spent = pending.spent, True  # before anything is awaited: two callbacks at once are one too many
        if spent or self._monotonic() - pending.begun_at > PENDING_SECONDS:
            raise SignInRefused("This sign-in took too long, or was finished already. Try again.")
        if not _same(query.get("state", ""), pending.state):
            raise SignInRefused("This sign-in was not begun by this browser. Try again.")
        metadata = await self._metadata.get()
        self._check_sender(metadata, query)
        code = query.get("code", "")
        if _CODE.match(code) is None:
            raise SignInRefused("The identity provider sent you back without a code. Try again.")
        tokens = await self._exchange(metadata, code, pending)
        claims = await self._verified(metadata, tokens, pending.nonce)
        said = await self._said(metadata, tokens, claims)
        if not _is_admin(self._settings, said):
            raise SignInRefused(
                "The identity provider knows you, but here you are no admin. Ask who runs this console."
            )
        subject = claims["sub"]
        return Admin(name_of(said, issuer=self._settings.issuer, subject=subject), subject, self._settings.issuer)

    def _secret(self) -> str:
        return _base64url(self._random(SECRET_BYTES))

    def _check_sender(self, metadata: "_Metadata", query: Mapping[str, str]) -> None:
        """Whose answer this is (RFC 9207 section 2.4), errors too; then what it is. Raises."""
        issuer = query.get("iss")
        if issuer is None and metadata.authorization_response_iss_parameter_supported:
            raise SignInRefused("The answer does not say which identity provider it is from. Try again.")
        if issuer is not None and not _same(issuer, self._settings.issuer):
            raise SignInRefused("The answer is from another identity provider than was asked. Try again.")
        error = query.get("error")
        if error in _RETRY:
            raise ProviderAway("The identity provider cannot sign anybody in right now. Try again in a while.")
        if error == "access_denied":
            raise SignInRefused("The sign-in was denied at the identity provider, by you or by its rules.")
        if error is not None:
            raise SignInRefused("The identity provider did not sign you in. Try again, or ask who runs this console.")

    async def _exchange(self, metadata: "_Metadata", code: str, pending: Pending) -> "_Tokens":
        """The tokens for a code (Core section 3.1.3)."""
        body = prepare_token_request(
            "authorization_code",
            code=code,
            redirect_uri=self._settings.redirect_uri,
            code_verifier=pending.code_verifier,
        )
        url, headers, body = _authentication(self._settings, metadata).prepare(
            "POST", metadata.token_endpoint, {"Content-Type": "application/x-www-form-urlencoded"}, body
        )
        answer = await self._line.ask("POST", url, headers, body.encode())
        if answer.status in {400, 401}:
            error = _read(answer.body, _Error).error
            if error == "invalid_grant":
                raise SignInRefused("The identity provider takes the code no more: it is old, or was used. Try again.")
            if error == "invalid_client":
                raise ProviderAway(
                    "The identity provider does not let the console in: its id or secret there is wrong."
                )
        if answer.status != 200:
            raise ProviderAway("The identity provider does not say who you are: it answered with an error.")
        try:
            return msgspec.json.decode(answer.body, type=_Tokens)
        except (ValueError, RecursionError):
            raise SignInRefused("The identity provider sent no ID token. Ask who runs this console.") from None

    async def _verified(self, metadata: "_Metadata", tokens: "_Tokens", nonce: str) -> dict[str, Any]:
        """The claims of the ID token (Core section 3.1.3.7)."""
        try:
            return await self._claims(metadata, tokens, nonce)
        except ProviderAway:
            raise
        except _Bad as error:
            why = str(error)
        except JoseError as error:
            why = f"it does not verify ({type(error).__name__})"
        except Exception:  # noqa: BLE001  whatever a token makes of the libraries, nobody comes in by it
            why = "it cannot be read"
        raise SignInRefused(f"The ID token of the identity provider does not count: {why}.")

    async def _claims(self, metadata: "_Metadata", tokens: "_Tokens", nonce: str) -> dict[str, Any]:
        token = extract_compact(tokens.id_token.encode("ascii"), registry=_REGISTRY)
        header = token.headers()
        if "crit" in header or "b64" in header:
            raise _Bad("its header has extensions")
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in metadata.algorithms:
            raise _Bad("its algorithm is not allowed")
        if kid is not None and not isinstance(kid, str):
            raise _Bad("its key id is no text")
        keys = await self._keys.get(lambda keys: _chosen(keys, kid, algorithm) is not None)
        key = _chosen(keys, kid, algorithm)
        if key is None:
            raise _Bad("its key is none of the identity provider's")
        if not validate_compact(token, key, registry=_REGISTRY):
            raise _Bad("its signature is wrong")
        claims = msgspec.json.decode(token.payload, type=dict[str, Any])
        JWTClaimsRegistry(
            now=int(self._clock()),
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": self._settings.issuer},
            aud={"essential": True, "value": self._settings.client_id},
            exp={"essential": True},
            iat={"essential": True},
        ).validate(claims)
        _check_claims(claims, client_id=self._settings.client_id, nonce=nonce)
        if "at_hash" in claims and not _same(claims["at_hash"], _half_hash(tokens.access_token, algorithm)):
            raise _Bad("its access token is another")
        return claims

    async def _said(self, metadata: "_Metadata", tokens: "_Tokens", claims: dict[str, Any]) -> dict[str, Any]:
        """Claims about the person: of the ID token, or where it lacks the claim of admins, of UserInfo (section 5.3).

        Never of both: an address of the one would pass for verified by the word of the other.
        """
        if self._settings.admin_claim in claims or metadata.userinfo_endpoint is None:
            return claims
        headers = {"Authorization": f"Bearer {tokens.access_token}"}
        answer = await self._line.ask("GET", metadata.userinfo_endpoint, headers)
        if answer.status != 200:
            raise ProviderAway(
                "The identity provider does not say more about you than your id: it answered with an error."
            )
        said: dict[str, Any] = _read(answer.body, dict[str, Any])
        if not _same(said.get("sub"), claims["sub"]):
            raise SignInRefused("The identity provider answered about somebody else. Try again.")
        return said

    async def _fetch_metadata(self) -> "_Metadata":
        """OpenID Connect Discovery section 4, else RFC 8414 section 3."""
        parts = urlsplit(self._settings.issuer)
        path = parts.path.rstrip("/")
        host = f"{parts.scheme}://{parts.netloc}"
        answer = await self._line.ask("GET", f"{host}{path}/.well-known/openid-configuration")
        if answer.status == 404:
            answer = await self._line.ask("GET", f"{host}/.well-known/oauth-authorization-server{path}")
        if answer.status != 200:
            raise ProviderAway("The identity provider does not describe itself: its discovery document is not there.")
        metadata = _read(answer.body, _Metadata)
        if metadata.issuer != self._settings.issuer:
            # Discovery section 4.3. Whoever answers here could else have people sign in anywhere.
            raise ProviderAway("The identity provider calls itself by another issuer than the console is set up for.")
        plain = parts.scheme == "http"
        endpoints = [metadata.authorization_endpoint, metadata.token_endpoint, metadata.jwks_uri]
        endpoints += [] if metadata.userinfo_endpoint is None else [metadata.userinfo_endpoint]
        if not all(_is_safe(each, plain=plain) for each in endpoints):
            raise ProviderAway("The identity provider names addresses that are not safe.")
        if not metadata.algorithms:
            raise ProviderAway("The identity provider signs with no algorithm that the console takes.")
        return metadata

    async def _fetch_keys(self) -> "Sequence[_Key]":
        """Its JWK Set (RFC 7517)."""
        metadata = await self._metadata.get()
        answer = await self._line.ask("GET", metadata.jwks_uri)
        keys = _usable(_read(answer.body, dict[str, Any])) if answer.status == 200 else []
        if not keys:
            raise ProviderAway("The keys of the identity provider cannot be had.")
        return keys


def safe_return_to(value: str | None) -> str:
    """`value` if it is a path of the console's own pages, else `HOME`: nobody is sent elsewhere after signing in.

    Not to the sign-in either, which would begin again.
    """
    if not value or len(value) > MAX_URL_CHARACTERS or _PATH.match(value) is None:
        return HOME
    # Browsers read `%2e` as a dot, and walk up at two.
    path = unquote(value.partition("?")[0])
    segments = path.split("/")
    if "." in segments or ".." in segments or "sign-in" in segments[2:3] or "" in segments[1:-1] or "\\" in path:
        return HOME
    return value


def name_of(said: Mapping[str, Any], *, issuer: str, subject: str) -> str:
    """The name under which the log has what somebody does: at most 64 of `A-Z a-z 0-9 . _ @ + -`.

    It is the `preferred_username`, which the provider has to keep unique. Where that takes a change, or there is none
    and a verified address or the subject stands in, which may be another's user name, a hash of issuer and subject is
    put behind it, so two people never become one; a name that looks like one of those gets its own.
    """
    verified = said.get("email") if said.get("email_verified") is True else None
    preferred = said.get("preferred_username")
    name = next((each for each in (preferred, verified) if isinstance(each, str) and each), subject)
    clean = _NOT_IN_NAMES.sub("_", name[:MAX_NAME_CHARACTERS])
    if name == preferred and clean == name and name[0].isalnum() and _MARKED.search(name) is None and name not in _OURS:
        return name
    mark = hashlib.sha256(f"{issuer}\n{subject}".encode("utf-8", "surrogatepass")).hexdigest()[:MARK_CHARACTERS]
    stem = clean.lstrip("._@+-")[: MAX_NAME_CHARACTERS - MARK_CHARACTERS - 1] or "admin"
    return f"{stem}-{mark}"


class _Metadata(Struct, frozen=True):
    """What the provider says of itself (Discovery section 3, RFC 8414 section 2)."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    id_token_signing_alg_values_supported: tuple[str, ...] = ("RS256",)
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    authorization_response_iss_parameter_supported: bool = False

    @property
    def algorithms(self) -> frozenset[str]:
        """Those that it offers and we take."""
        return ALGORITHMS & frozenset(self.id_token_signing_alg_values_supported)


class _Tokens(Struct, frozen=True):
    id_token: str
    access_token: str


class _Error(Struct, frozen=True):
    error: str = ""


class _Answer(Struct, frozen=True):
    status: int
    body: bytes


class _Key(Struct, frozen=True):
    """A public key of the provider, and what it is for."""

    id: Any
    algorithms: frozenset[str]
    key: Key


class _Bad(Exception):
    """What is wrong with an ID token, without any of it."""


class _Line:
    """HTTP to the provider: within limits of time and size, redirects not followed."""

    def __init__(self, http: httpx.AsyncClient | None) -> None:
        self._http = http
        self._tls = ssl.create_default_context() if http is None else None

    async def ask(
        self, method: Literal["GET", "POST"], url: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> _Answer:
        """The answer, whatever its status. Raises `ProviderAway`."""
        # As it is: a few compressed bytes may be many.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", **(headers or {})}
        try:
            async with (
                asyncio.timeout(ASK_SECONDS),
                self._client() as http,
                http.stream(method, url, headers=headers, content=body, follow_redirects=False) as answer,
            ):
                read = bytearray()
                async for chunk in answer.aiter_raw():
                    read += chunk
                    if len(read) > MAX_ANSWER_BYTES:
                        raise ProviderAway("The identity provider answers with more than anybody should have to read.")
                return _Answer(answer.status_code, bytes(read))
        except TimeoutError:
            raise ProviderAway("The identity provider does not answer in time. Try again in a while.") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError):
            raise ProviderAway("The identity provider cannot be reached. Try again in a while.") from None

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        if self._http is not None:
            yield self._http
        else:
            assert self._tls is not None
            async with httpx.AsyncClient(verify=self._tls, timeout=ASK_SECONDS) as own:
                yield own


class _Kept(Generic[T]):
    """Something that the provider publishes: fetched when old or lacking, seldom, and kept a while when it is away."""

    def __init__(self, fetch: Callable[[], Awaitable[T]], monotonic: Callable[[], float]) -> None:
        self._fetch = fetch
        self._monotonic = monotonic
        self._fetching = asyncio.Lock()
        self._have: T | None = None
        self._fetched_at = -math.inf
        self._tried_at = -math.inf
        self._why = ""

    async def get(self, suffices: Callable[[T], bool] = lambda _: True) -> T:
        """What is known; fetched anew where it does not suffice, unless that was just tried. Raises `ProviderAway`."""
        if (have := self._fresh()) is not None and suffices(have):
            return have
        async with self._fetching:
            await self._refresh()  # who waited here for another's fetch has what that one found
        if self._have is None or self._monotonic() - self._fetched_at > KEEP_SECONDS:
            raise ProviderAway(self._why)
        return self._have

    def _fresh(self) -> T | None:
        return self._have if self._monotonic() - self._fetched_at <= FRESH_SECONDS else None

    async def _refresh(self) -> None:
        if self._monotonic() - self._tried_at < (FIRST_SECONDS if self._have is None else COOL_DOWN_SECONDS):
            return
        try:
            self._have = await self._fetch()
            self._fetched_at = self._monotonic()
        except ProviderAway as away:
            self._why = str(away)
        finally:
            self._tried_at = self._monotonic()


class _Algorithms(JWSRegistry):
    """joserfc's algorithms, where `EdDSA` (RFC 8037) means Ed25519 alone, as RFC 9864 has it."""

    max_header_length = 4_096

    def get_alg(self, name: str) -> JWSAlgModel:
        """The algorithm of that name, if it is allowed."""
        return super().get_alg("Ed25519" if name == "EdDSA" else name)


_REGISTRY: Final = _Algorithms(algorithms=ALGORITHMS, strict_check_header=False)
"""Header members that are unknown are passed over (RFC 7515 section 4)."""


def _authentication(settings: OidcSettings, metadata: _Metadata) -> ClientAuth:
    """How the console says who it is, of what the provider takes (Core section 9)."""
    if settings.client_secret is None:
        return ClientAuth(settings.client_id, None, "none")
    if "client_secret_basic" in metadata.token_endpoint_auth_methods_supported:
        # RFC 6749 section 2.3.1: form-encoded, and only then joined by a colon. Authlib leaves that to its callers.
        return ClientAuth(quote_plus(settings.client_id), quote_plus(settings.client_secret), "client_secret_basic")
    if "client_secret_post" in metadata.token_endpoint_auth_methods_supported:
        return ClientAuth(settings.client_id, settings.client_secret, "client_secret_post")
    raise ProviderAway("The identity provider does not take client secrets.")


def _check_claims(claims: Mapping[str, Any], *, client_id: str, nonce: str) -> None:
    """What joserfc leaves open: its comparisons take a list for each of its elements. Raises `_Bad`."""
    if not _same(claims.get("nonce"), nonce):
        raise _Bad("it is not for this sign-in")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT_CHARACTERS:
        raise _Bad("it does not say who you are")
    audiences = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
    if ("azp" in claims or len(audiences) > 1) and not _same(claims.get("azp"), client_id):
        raise _Bad("it is for another application")


def _is_admin(settings: OidcSettings, said: Mapping[str, Any]) -> bool:
    if settings.admin_claim == "email" and said.get("email_verified") is not True:
        return False  # anybody may claim to have an address
    value = said.get(settings.admin_claim)
    return any(
        isinstance(each, str) and each in settings.admin_values
        for each in (value if isinstance(value, list) else [value])
    )


def _usable(key_set: Mapping[str, Any]) -> list[_Key]:
    """The public signature keys of a JWK Set. What cannot be used is passed over (RFC 7517 section 5)."""
    listed = key_set.get("keys")
    usable = []
    for each in listed[:MAX_KEYS] if isinstance(listed, list) else ():
        try:
            usable += [] if (key := _imported(each)) is None else [key]
        except Exception:  # noqa: BLE001, S112  whatever is wrong with one key, the others count
            continue
    return usable


def _imported(key: dict[str, Any]) -> _Key | None:
    if key.get("use", "sig") != "sig":
        return None
    imported: Key
    algorithms: frozenset[str]
    match key:
        case {"kty": "RSA", "n": str(n), "e": str(e)}:
            if int.from_bytes(base64.urlsafe_b64decode(n + "==")).bit_length() < MIN_RSA_BITS:
                return None
            imported, algorithms = RSAKey.import_key({"kty": "RSA", "n": n, "e": e}), frozenset({"RS256", "PS256"})
        case {"kty": "EC", "crv": "P-256", "x": str(x), "y": str(y)}:
            imported = ECKey.import_key({"kty": "EC", "crv": "P-256", "x": x, "y": y})
            algorithms = frozenset({"ES256"})
        case {"kty": "OKP", "crv": "Ed25519", "x": str(x)}:
            imported, algorithms = OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": x}), _OKP_ALGORITHMS
        case _:
            return None
    if "alg" in key:  # then it is for nothing else (RFC 7517 section 4.4)
        algorithms &= _OKP_ALGORITHMS if key["alg"] in _OKP_ALGORITHMS else {key["alg"]}
    return _Key(key.get("kid"), algorithms, imported)


def _chosen(keys: Sequence[_Key], kid: str | None, algorithm: str) -> Key | None:
    """The key of that id; the only one that fits, where a token names none."""
    fitting = [each for each in keys if algorithm in each.algorithms and (kid is None or each.id == kid)]
    return fitting[0].key if fitting and (kid is not None or len(fitting) == 1) else None


def _half_hash(access_token: str, algorithm: str) -> str:
    """What `at_hash` is (Core section 3.1.3.6): the left half of the hash that the signature is made with."""
    digest = (hashlib.sha512 if algorithm in _OKP_ALGORITHMS else hashlib.sha256)(access_token.encode()).digest()
    return _base64url(digest[: len(digest) // 2])


def _read(body: bytes, type_: type[T]) -> T:
    """JSON of the provider. Raises `ProviderAway`."""
    try:
        return msgspec.json.decode(body, type=type_)
    except (ValueError, RecursionError):
        raise ProviderAway("The identity provider answers in a way that the console does not understand.") from None


def _is_safe(url: str, *, plain: bool) -> bool:
    """Whether a URL is https, or where `plain` http of this machine; no user, no fragment, nothing parsers dispute."""
    if len(url) > MAX_URL_CHARACTERS or _URL.match(url) is None or "#" in url:
        return False
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and "@" not in parts.netloc and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    return named and (parts.scheme == "https" or (plain and parts.scheme == "http" and parts.hostname in _LOOPBACK))


def _same(value: object, expected: str) -> bool:
    """Whether two texts are the same, in a time that does not say where they differ."""
    return isinstance(value, str) and hmac.compare_digest(
        value.encode("utf-8", "surrogatepass"), expected.encode("utf-8", "surrogatepass")
    )


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
