"""Access tokens that are JWTs (RFC 9068), verified as RFC 8725 advises. Needs `pip install 'grantbook[tokens]'`.

    verifier = JwtVerifier(issuer="https://idp.example", audience="https://mcp.example/mcp", jwks_url="https://...")
    access = await verifier.verify(token)  # raises TokenRefused

Algorithms are fixed here and asymmetric. Nothing that a token's header names is ever fetched or believed: no `jku`, no
`jwk`, no `x5u`. A token of an unknown key costs a fetch of the issuer's keys once in a while, however many come.
"""

import asyncio
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import jwt
import msgspec
from msgspec import Struct

from grantbook.sdk import clocks
from grantbook.sdk.tasks import end

ALGORITHMS: Final = ("ES256", "ES384", "RS256", "PS256", "EdDSA")
TYPES: Final = frozenset({"at+jwt", "application/at+jwt"})
LEEWAY_SECONDS: Final = 5.0
MAX_TOKEN_CHARACTERS: Final = 16_384
MAX_KEYS: Final = 64
MAX_KEY_SET_BYTES: Final = 256 * 1024
COOL_DOWN_SECONDS: Final = 30.0
"""The issuer's keys are not asked for more often, whatever tokens say."""
FIRST_SECONDS: Final = 1.0
"""Nor more often than that while none is known yet."""
REFRESH_SECONDS: Final = 900.0
"""After so long they are asked for again: a key that the issuer took back stops counting."""
KEEP_SECONDS: Final = 24 * 3_600.0
"""With the issuer away, the keys that were known count for so long."""
FETCH_SECONDS: Final = 5.0
MAX_CLAIM_CHARACTERS: Final = 2_048

_PARTS: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\Z")
_KEY_TYPES: Final = {"EC", "RSA", "OKP"}
_PRIVATE: Final = {"d", "p", "q", "dp", "dq", "qi", "oth"}
_LOOPBACK: Final = {"localhost", "127.0.0.1", "::1"}


class TokenRefused(Exception):
    """The token must not be honoured. Says why, without any of it."""


class KeysUnavailable(TokenRefused):
    """The issuer's keys cannot be had, so nobody knows. Not the caller's fault: 503 rather than 401."""


class Access(Struct, frozen=True):
    """What a token that verified says. Times are POSIX seconds."""

    client_id: str
    grant_id: str
    user_id: str
    issued_at: float
    expires_at: float
    scopes: tuple[str, ...]
    claims: dict[str, Any]
    """All claims, as the token has them."""


class JwtVerifier:
    """Verifies access tokens of one issuer for one audience (or any of several).

    Its keys are `keys`, a JWK Set (RFC 7517), or fetched from `jwks_url`: `https`, or `http` of this machine. `leeway`
    is how far the issuer's clock may differ. `any_type` accepts tokens whose `typ` is not `at+jwt`, for issuers from
    before RFC 9068; then an ID token of the same issuer might pass for an access token, if its audience did.

    Raises `ValueError` for settings that are not safe.
    """

    def __init__(
        self,
        *,
        issuer: str,
        audience: str | Sequence[str],
        jwks_url: str | None = None,
        keys: Mapping[str, Any] | None = None,
        algorithms: Sequence[str] = ALGORITHMS,
        grant_claim: str = "grant_id",
        leeway: timedelta = timedelta(seconds=LEEWAY_SECONDS),
        any_type: bool = False,
        http: httpx.AsyncClient | None = None,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        if not algorithms or not set(algorithms) <= set(ALGORITHMS):
            raise ValueError(f"algorithms are some of {', '.join(ALGORITHMS)}")
        if not issuer or not audience:
            raise ValueError("an issuer and an audience are needed")
        if (jwks_url is None) == (keys is None):
            raise ValueError("either jwks_url or keys is needed")
        self._issuer = issuer
        self._audience = audience if isinstance(audience, str) else list(audience)
        self._algorithms = frozenset(algorithms)
        self._grant_claim = grant_claim
        self._leeway = leeway.total_seconds()
        self._any_type = any_type
        self._clock = _utc_now if clock is None else clock
        self._keys: _FixedKeys | _FetchedKeys
        if keys is not None:
            self._keys = _FixedKeys(_usable(keys))
            if not self._keys.known:
                raise ValueError("none of the keys can be used")
        else:
            assert jwks_url is not None
            self._keys = _FetchedKeys(jwks_url, http)

    async def verify(self, token: str) -> Access:
        """What the token says. Raises `TokenRefused`, and `KeysUnavailable` where nobody knows. Total."""
        if len(token) > MAX_TOKEN_CHARACTERS or _PARTS.match(token) is None:
            raise TokenRefused("it is no JWT")
        header = self._header(token)
        key = await self._keys.find(header.get("kid"), header["alg"])
        if key is None:
            raise TokenRefused("its key is none of the issuer's")
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[header["alg"]],
                options={
                    "require": ["iss", "aud", "sub", "exp", "iat"],
                    # By our clock, below.
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
                issuer=self._issuer,
                audience=self._audience,
            )
        except jwt.InvalidTokenError as error:
            raise TokenRefused(f"it does not verify: {type(error).__name__}") from None
        except Exception as error:  # noqa: BLE001  whatever a token makes of the library, it is refused
            raise TokenRefused(f"it cannot be read: {type(error).__name__}") from None
        return self._access(claims)

    async def aclose(self) -> None:
        """Let go of the connection to the issuer."""
        await self._keys.aclose()

    def _header(self, token: str) -> dict[str, Any]:
        try:
            header: Any = jwt.get_unverified_header(token)
        except Exception:  # noqa: BLE001  the same
            raise TokenRefused("its header cannot be read") from None
        if not isinstance(header.get("alg"), str) or header["alg"] not in self._algorithms:
            raise TokenRefused("its algorithm is not allowed")
        if "crit" in header or "b64" in header:
            raise TokenRefused("its header has extensions")
        type_ = header.get("typ")
        if not self._any_type and (not isinstance(type_, str) or type_.lower() not in TYPES):
            raise TokenRefused("its type is not at+jwt")  # RFC 9068 section 4
        if not isinstance(header.get("kid", ""), str):
            raise TokenRefused("its key id is no text")
        return dict(header)

    def _access(self, claims: dict[str, Any]) -> Access:
        now = self._clock().timestamp()
        expires_at, issued_at = _time(claims, "exp"), _time(claims, "iat")
        if now >= expires_at + self._leeway:
            raise TokenRefused("it has expired")
        if issued_at > now + self._leeway:
            raise TokenRefused("it is from the future")
        if "nbf" in claims and _time(claims, "nbf") > now + self._leeway:
            raise TokenRefused("it is not valid yet")
        scope = claims.get("scope", "")
        if not isinstance(scope, str):
            raise TokenRefused("its scope is no text")
        return Access(
            client_id=_text(claims, "client_id"),
            grant_id=_text(claims, self._grant_claim),
            user_id=_text(claims, "sub"),
            issued_at=issued_at,
            expires_at=expires_at,
            scopes=tuple(scope.split()),
            claims=claims,
        )


class _Key(Struct, frozen=True):
    """A public key of an issuer, and what it is for."""

    id: Any
    algorithms: frozenset[str]
    key: jwt.PyJWK


class _FixedKeys:
    """Keys that were given."""

    def __init__(self, known: Sequence[_Key]) -> None:
        self.known = known

    async def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """The key of that id, or the only one that fits where a token names none."""
        return _chosen(self.known, kid, algorithm)

    async def aclose(self) -> None:
        """Nothing to let go of."""


class _FetchedKeys:
    """Keys of an issuer, as it publishes them."""

    def __init__(self, url: str, http: httpx.AsyncClient | None) -> None:
        parts = urlsplit(url)
        if not (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)):
            raise ValueError("jwks_url is an https URL, or an http one of this machine")
        self._url = url
        self._http = http
        self._own: httpx.AsyncClient | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._known: Sequence[_Key] = ()
        self._fetched_at = -math.inf
        self._tried_at = -math.inf

    async def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """The key of that id. Fetches at most once in `COOL_DOWN_SECONDS`. Raises `KeysUnavailable`."""
        found = _chosen(self._known, kid, algorithm)
        now = clocks.now()
        if found is None or now - self._fetched_at > REFRESH_SECONDS:
            # Tried lately and in vain: tokens of keys that are known do not wait for an issuer that hangs.
            may_wait = found is None or now - self._tried_at > REFRESH_SECONDS
            fetching = self._begun(now)
            if fetching is not None and (may_wait or now - self._fetched_at > KEEP_SECONDS):
                await asyncio.wait((fetching,))  # the fetch goes on for the others when this caller is cancelled
                found = _chosen(self._known, kid, algorithm)
        if clocks.now() - self._fetched_at > KEEP_SECONDS:
            raise KeysUnavailable("the issuer's keys cannot be fetched")
        return found

    async def aclose(self) -> None:
        """Let go of the client, if it is ours."""
        if self._fetching is not None:
            await end(self._fetching)
        if self._own is not None:
            await self._own.aclose()

    def _begun(self, now: float) -> asyncio.Task[None] | None:
        """The one fetch under way, begun here unless the last was a moment ago."""
        if self._fetching is not None and not self._fetching.done():
            return self._fetching
        if now - self._tried_at < (COOL_DOWN_SECONDS if self._known else FIRST_SECONDS):
            return None
        self._tried_at = now
        self._fetching = asyncio.create_task(self._refresh(), name="grantbook keys of the issuer")
        return self._fetching

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                body = await self._fetch()
            fetched = _usable(msgspec.json.decode(body))
        except Exception:  # noqa: BLE001  whatever the issuer answers: what is known still counts, for a while
            return
        if fetched:
            self._known, self._fetched_at = fetched, clocks.now()

    async def _fetch(self) -> bytes:
        if self._http is None and self._own is None:
            self._own = httpx.AsyncClient(timeout=FETCH_SECONDS)
        http = self._http or self._own
        assert http is not None
        body = b""
        # As it is: a few compressed bytes may be many.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        async with http.stream("GET", self._url, headers=headers, follow_redirects=False) as answer:
            if answer.status_code != 200:
                raise ValueError("the issuer's keys are not there")
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) > MAX_KEY_SET_BYTES:
                    raise ValueError("the issuer's key set is too large")
        return body


def _usable(key_set: Any) -> list["_Key"]:
    """The public signature keys of a JWK Set. What cannot be used is passed over (RFC 7517 section 5)."""
    keys = key_set.get("keys") if isinstance(key_set, Mapping) else None
    usable = []
    for each in keys[:MAX_KEYS] if isinstance(keys, list) else ():
        if not isinstance(each, dict) or not all(isinstance(each.get(name, ""), str) for name in ("kty", "use", "alg")):
            continue
        if each.get("kty") not in _KEY_TYPES or each.get("use", "sig") != "sig":
            continue
        try:
            key = jwt.PyJWK.from_dict({name: value for name, value in each.items() if name not in _PRIVATE})
        except Exception:  # noqa: BLE001, S112  whatever is wrong with one key, the others count
            continue
        # Where a key says what it is for, it is for nothing else (RFC 7517 section 4.4).
        algorithms = {each["alg"]} if "alg" in each else {key.algorithm_name}
        if "alg" not in each and each["kty"] == "RSA":
            algorithms.add("PS256")
        usable.append(_Key(each.get("kid"), frozenset(algorithms), key))
    return usable


def _chosen(keys: Sequence["_Key"], kid: str | None, algorithm: str) -> jwt.PyJWK | None:
    """The key of that id; the only one that fits, where a token names none."""
    fitting = [each for each in keys if algorithm in each.algorithms and (kid is None or each.id == kid)]
    return fitting[0].key if fitting and (kid is not None or len(fitting) == 1) else None


_MOST_SECONDS: Final = 1_000_000_000_000
"""Times beyond, either way, are none: the year 33658."""


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    # Compared before anything is made of it: JSON has whole numbers that no float can hold. NaN is within no bounds.
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_MOST_SECONDS <= value <= _MOST_SECONDS:
        raise TokenRefused(f"its {name} is no time")
    return float(value)


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_CLAIM_CHARACTERS:
        raise TokenRefused(f"it has no {name}")
    return value


def _utc_now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251  the default for programs that are not ours; ours hand their clock in
