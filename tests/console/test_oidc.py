"""Signing in at an OpenID provider: who is let in as whom, and all that must let nobody in."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import parse_qs, parse_qsl, unquote_plus, urljoin, urlsplit

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from hypothesis import example, given
from hypothesis import strategies as st

from console import oidc
from console.oidc import Admin, Oidc, OidcSettings, Pending, ProviderAway, SignInRefused, name_of, safe_return_to
from door import roles

SECONDS: Final = 20.0
CLIENT: Final = "grantbook-console"
SECRET: Final = "s3cret+with/all: of% it&="
CALLBACK: Final = "https://console.example/console/sign-in/callback"
NOW: Final = 1_800_000_000.0
EC: Final = ec.generate_private_key(ec.SECP256R1())
RSA: Final = rsa.generate_private_key(65_537, 2_048)
WEAK: Final = rsa.generate_private_key(65_537, 1_024)  # noqa: S505  the provider should not have it
ED: Final = ed25519.Ed25519PrivateKey.generate()
HTTP: Final = httpx.AsyncClient()
"""For what is refused before anything is asked."""
OTHER: Final = ec.generate_private_key(ec.SECP256R1())


def public(key: Any, algorithm: str, kid: str, **more: Any) -> dict[str, Any]:
    """The public JWK of a key."""
    made: dict[str, Any] = json.loads(jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key()))
    return made | {"kid": kid} | more


KEYS: Final[list[Any]] = [
    public(EC, "ES256", "ec", alg="ES256", use="sig"),
    public(RSA, "RS256", "rsa"),
    public(ED, "EdDSA", "ed", alg="EdDSA"),
    public(OTHER, "ES256", "enc", use="enc"),
    public(OTHER, "ES256", "es512", alg="ES512"),
    public(WEAK, "RS256", "weak"),
    {"kty": "oct", "k": "c2VjcmV0", "kid": "oct"},
    {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "broken"},
    {"kty": "EC", "crv": "P-256", "x": 7, "y": [], "kid": "odd"},
    "no key at all",
]


def b64(data: bytes | str) -> str:
    return base64.urlsafe_b64encode(data.encode() if isinstance(data, str) else data).decode().rstrip("=")


def by_hand(header: object, claims: object, signature: bytes = b"x" * 64) -> str:
    return ".".join((b64(json.dumps(header)), b64(json.dumps(claims)), b64(signature)))


def signed(claims: dict[str, Any], key: Any = EC, algorithm: str = "ES256", kid: str | None = "ec", **head: Any) -> str:
    """A token by another library than the one that verifies it. Claims that are None are left out."""
    header = head if kid is None else head | {"kid": kid}
    claims = {name: value for name, value in claims.items() if value is not None}
    if algorithm != "Ed25519":
        return jwt.encode(claims, key, algorithm, headers=header)
    text = f"{b64(json.dumps({'alg': 'Ed25519'} | header))}.{b64(json.dumps(claims))}"
    return f"{text}.{b64(key.sign(text.encode()))}"


class Clock:
    """Both clocks, in hand."""

    def __init__(self) -> None:
        self.posix = NOW
        self.monotonic = 100.0

    def advance(self, seconds: float) -> None:
        self.posix += seconds
        self.monotonic += seconds


class Provider:
    """An OpenID provider over HTTP, strict about what it is sent; what it answers can be broken in many ways."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.issuer = ""
        self.asked: list[str] = []
        self.more: dict[str, Any] = {}
        self.keys: list[Any] = list(KEYS)
        self.about: dict[str, Any] = {"sub": "u-17", "preferred_username": "ada", "groups": ["staff", "admins"]}
        self.user_info: dict[str, Any] = {}
        self.secret: str | None = SECRET
        self.token: Callable[[dict[str, Any]], Any] = signed
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.held = asyncio.Event()
        self.held.set()
        self._codes: dict[str, dict[str, str]] = {}

    @property
    def metadata(self) -> dict[str, Any]:
        made = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize?tenant=1",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "userinfo_endpoint": f"{self.issuer}/userinfo",
            "id_token_signing_alg_values_supported": ["RS256", "PS256", "ES256", "EdDSA", "Ed25519", "HS256", "none"],
            "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
            "response_types_supported": ["code"],
        } | self.more
        return {name: value for name, value in made.items() if value is not None}

    def signs_in(self, url: str) -> dict[str, str]:
        """What the browser brings back to the callback, of somebody who signs in."""
        parts = urlsplit(url)
        assert f"{parts.scheme}://{parts.netloc}{parts.path}" == f"{self.issuer}/authorize"
        listed = parse_qsl(parts.query, strict_parsing=True)
        asked = dict(listed)
        assert len(asked) == len(listed)
        assert asked["tenant"] == "1"
        assert (asked["response_type"], asked["client_id"], asked["redirect_uri"]) == ("code", CLIENT, CALLBACK)
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        code = secrets.token_urlsafe(8) + "+/= %"
        self._codes[code] = asked
        return {"code": code, "state": asked["state"]}

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            path = head.split()[1]
            self.asked.append(path)
            await self.held.wait()
            status, content = self.answers.get(path) or self._answer(path, headers, body.decode())
            extra = f"Location: {self.issuer}/elsewhere\r\n" if status in {302, 307} else ""
            writer.write(f"HTTP/1.1 {status} x\r\n{extra}Content-Length: {len(content)}\r\n".encode())
            writer.write(b"Connection: close\r\n\r\n" + content)
            await writer.drain()
        writer.close()

    def _answer(self, path: str, headers: dict[str, str], body: str) -> tuple[int, bytes]:
        found: Any = None
        if path == "/.well-known/openid-configuration":
            found = self.metadata
        elif path == "/keys":
            found = {"keys": self.keys}
        elif path == "/userinfo" and headers["authorization"] == "Bearer access":
            found = {"sub": self.about["sub"]} | self.user_info
        elif path == "/token":
            return self._token(headers, body)
        return (404, b"") if found is None else (200, json.dumps(found).encode())

    def _token(self, headers: dict[str, str], body: str) -> tuple[int, bytes]:
        form = {name: values[0] for name, values in parse_qs(body, strict_parsing=True).items()}
        if "authorization" in headers:  # RFC 6749 section 2.3.1, to the letter
            pair = base64.b64decode(headers["authorization"].removeprefix("Basic ")).decode().split(":")
            client, secret = (unquote_plus(each) for each in pair)
            assert "client_secret" not in form
        else:
            client, secret = form["client_id"], form.get("client_secret", "")
        if (client, secret) != (CLIENT, self.secret or ""):
            return 401, b'{"error": "invalid_client"}'
        asked = self._codes.pop(form["code"], None)
        proof = b64(hashlib.sha256(form["code_verifier"].encode()).digest())
        if asked is None or asked["code_challenge"] != proof or form["redirect_uri"] != CALLBACK:
            return 400, b'{"error": "invalid_grant", "error_description": "<script>alert(1)</script>"}'
        assert form["grant_type"] == "authorization_code"
        now = int(self.clock.posix)
        claims = {"iss": self.issuer, "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": asked["nonce"]} | self.about
        answer = {"access_token": "access", "token_type": "Bearer", "id_token": self.token(claims)}
        return 200, json.dumps({name: value for name, value in answer.items() if value is not None}).encode()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def provider(clock: Clock) -> AsyncIterator[Provider]:
    async with opened(clock) as made:
        yield made


@asynccontextmanager
async def opened(clock: Clock) -> AsyncIterator[Provider]:
    made = Provider(clock)
    server = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    made.issuer = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield made


def settings(provider: Provider, **more: Any) -> OidcSettings:
    return OidcSettings(
        **(
            {
                "issuer": provider.issuer,
                "client_id": CLIENT,
                "client_secret": provider.secret,
                "redirect_uri": CALLBACK,
                "admin_claim": "groups",
                "admin_values": ("admins", "operators"),
            }
            | more
        )
    )


def console(provider: Provider, http: httpx.AsyncClient | None = None, **more: Any) -> Oidc:
    return Oidc(
        settings(provider, **more),
        http=http,
        random=secrets.token_bytes,
        clock=lambda: provider.clock.posix,
        monotonic=lambda: provider.clock.monotonic,
    )


async def signed_in(provider: Provider, oidc: Oidc | None = None, **more: Any) -> Admin:
    """All of it: to the provider, and back."""
    oidc = oidc or console(provider, **more)
    url, pending = await oidc.begin("/console/clients")
    return await oidc.finish(pending, provider.signs_in(url))


async def test_an_admin_signs_in_under_their_name(provider: Provider) -> None:
    """Admins: what they do is recorded under the name that they know themselves by."""
    oidc = console(provider)
    url, pending = await oidc.begin("/console/clients?name=x")
    assert pending.return_to == "/console/clients?name=x"
    assert pending.code_verifier not in url
    assert await oidc.finish(pending, provider.signs_in(url)) == Admin("ada", "u-17", provider.issuer)
    assert provider.asked == ["/.well-known/openid-configuration", "/token", "/keys"]
    assert await signed_in(provider, oidc) == Admin("ada", "u-17", provider.issuer)
    assert provider.asked[3:] == ["/token"]


async def test_two_sign_ins_have_nothing_in_common(provider: Provider) -> None:
    """Protects from who saw one URL and guesses at the next: state, nonce and verifier are of 256 random bits each."""
    oidc = console(provider)
    begun = [(await oidc.begin(None))[1] for _ in range(50)]
    drawn = [text for each in begun for text in (each.state, each.nonce, each.code_verifier)]
    assert len(set(drawn)) == 150
    assert {len(text) for text in drawn} == {43}
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", text) for text in drawn)


@pytest.mark.parametrize(
    ("methods", "secret"),
    [(None, SECRET), (["client_secret_basic"], SECRET), (["client_secret_post"], SECRET), (["none"], None)],
)
async def test_the_console_says_who_it_is_in_a_way_that_the_provider_takes(
    provider: Provider, methods: list[str] | None, secret: str | None
) -> None:
    """Operators: their provider's choice works, and so does a secret with any character, and none at all."""
    provider.more["token_endpoint_auth_methods_supported"] = methods
    provider.secret = secret
    assert (await signed_in(provider)).name == "ada"


async def test_connections_can_be_handed_in(provider: Provider) -> None:
    """Operators with a proxy or authorities of their own; redirects stay unfollowed, whatever the client does."""
    async with httpx.AsyncClient(follow_redirects=True) as http:
        assert (await signed_in(provider, console(provider, http))).name == "ada"
        provider.answers["/token"] = (307, b"")
        with pytest.raises(ProviderAway):
            await signed_in(provider, console(provider, http))
    assert "/elsewhere" not in provider.asked


GOOD: Final[dict[str, Callable[[dict[str, Any]], str]]] = {
    "ES256": signed,
    "RS256": lambda claims: signed(claims, RSA, "RS256", "rsa"),
    "PS256": lambda claims: signed(claims, RSA, "PS256", "rsa"),
    "EdDSA": lambda claims: signed(claims, ED, "EdDSA", "ed"),
    "Ed25519": lambda claims: signed(claims, ED, "Ed25519", "ed"),
    "no kid, one key that fits": lambda claims: signed(claims, kid=None),
    "unknown header members": lambda claims: signed(claims, x_tenant="a", x5t="abc"),
    "several audiences, for us": lambda claims: signed(claims | {"aud": [CLIENT, "other"], "azp": CLIENT}),
    "audience in a list": lambda claims: signed(claims | {"aud": [CLIENT]}),
    "azp": lambda claims: signed(claims | {"azp": CLIENT}),
    "just expired": lambda claims: signed(claims | {"exp": NOW - 50}),
    "from a clock that is ahead": lambda claims: signed(claims | {"iat": NOW + 50, "nbf": NOW + 50}),
    "at_hash": lambda claims: signed(claims | {"at_hash": b64(hashlib.sha256(b"access").digest()[:16])}),
    "at_hash of Ed25519": lambda claims: signed(
        claims | {"at_hash": b64(hashlib.sha512(b"access").digest()[:32])}, ED, "EdDSA", "ed"
    ),
}


@pytest.mark.parametrize("token", GOOD)
async def test_an_id_token_that_is_right_lets_in(provider: Provider, token: str) -> None:
    """Admins: whatever their provider may choose is taken."""
    provider.token = GOOD[token]
    assert (await signed_in(provider)).subject == "u-17"


def hmac_with(secret: str) -> Callable[[dict[str, Any]], str]:
    """The oldest trick: something that others know, taken for a shared secret."""

    def made(claims: dict[str, Any]) -> str:
        text = f"{b64(json.dumps({'alg': 'HS256', 'kid': 'ec'}))}.{b64(json.dumps(claims))}"
        return f"{text}.{b64(hmac.new(secret.encode(), text.encode(), hashlib.sha256).digest())}"

    return made


def tampered(claims: dict[str, Any]) -> str:
    head, _, signature = signed(claims).split(".")
    return f"{head}.{b64(json.dumps(claims | {'sub': 'root'}))}.{signature}"


def raw(claims: dict[str, Any], payload: str) -> str:
    text = f"{signed(claims).split('.')[0]}.{b64(payload)}"
    der = EC.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
    return f"{text}.{b64(jwt.utils.der_to_raw_signature(der, EC.curve))}"


def weak(claims: dict[str, Any]) -> str:
    text = f"{b64(json.dumps({'alg': 'RS256', 'kid': 'weak'}))}.{b64(json.dumps(claims))}"
    return f"{text}.{b64(WEAK.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def with_(**more: Any) -> Callable[[dict[str, Any]], str]:
    return lambda claims: signed(claims | more)


BAD: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "missing": lambda _: None,
    "a number": lambda _: 7,
    "empty": lambda _: "",
    "no JWT": lambda _: "abc",
    "not ASCII": lambda claims: signed(claims) + "é",
    "four parts": lambda claims: f"{signed(claims)}.x",
    "huge": lambda _: "a" * 200_000,
    "header is no JSON": lambda _: f"{b64('x')}.{b64('{}')}.{b64('x')}",
    "header is a list": lambda claims: by_hand(["alg"], claims),
    "header is deep": lambda claims: f"{b64('[' * 2_900)}.{b64(json.dumps(claims))}.{b64('x')}",
    "header without alg": lambda claims: by_hand({"kid": "ec"}, claims),
    "payload is a list": lambda claims: raw(claims, "[]"),
    "payload is no JSON": lambda claims: raw(claims, "x"),
    "payload is deep": lambda claims: raw(claims, "[" * 90_000),
    "alg none": lambda claims: by_hand({"alg": "none", "kid": "ec"}, claims, b""),
    "alg nOnE": lambda claims: by_hand({"alg": "nOnE", "kid": "ec"}, claims, b""),
    "alg HS256 with the public key": hmac_with(json.dumps(public(EC, "ES256", "ec"))),
    "alg HS256 with the client's secret": hmac_with(SECRET),
    "alg HS256 with the shared key": lambda claims: signed(claims, b"secret" * 8, "HS256", "oct"),
    "alg is a list": lambda claims: by_hand({"alg": ["ES256"], "kid": "ec"}, claims),
    "alg RS512": lambda claims: signed(claims, RSA, "RS512", "rsa"),
    "alg RS256 with the id of the EC key": lambda claims: signed(claims, RSA, "RS256", "ec"),
    "no signature": lambda claims: f"{signed(claims).rsplit('.', 1)[0]}.",
    "signature of zeros": lambda claims: f"{signed(claims).rsplit('.', 1)[0]}.{b64(bytes(64))}",
    "claims changed": tampered,
    "another's key with a known id": lambda claims: signed(claims, OTHER),
    "a key for encryption": lambda claims: signed(claims, OTHER, kid="enc"),
    "a key for another algorithm": lambda claims: signed(claims, OTHER, kid="es512"),
    "a key that is too short": weak,
    "an unknown key": lambda claims: signed(claims, OTHER, kid="nobody"),
    "a broken key": lambda claims: signed(claims, kid="broken"),
    "kid is a number": lambda claims: by_hand({"alg": "ES256", "kid": 7}, claims),
    "crit": lambda claims: signed(claims, crit=["x"], x=1),
    "crit of what is known": lambda claims: signed(claims, crit=["kid"]),
    "b64": lambda claims: signed(claims, crit=["b64"], b64=True),
    "own key in jwk": lambda claims: signed(claims, OTHER, kid="nobody", jwk=public(OTHER, "ES256", "nobody")),
    "own keys at jku": lambda claims: signed(claims, OTHER, kid="nobody", jku="http://127.0.0.1:1/keys"),
    "other issuer": with_(iss="https://evil.example"),
    "no issuer": with_(iss=None),
    "issuer in a list": lambda claims: raw(claims, json.dumps(claims | {"iss": [claims["iss"]]})),
    "issuer with a slash": lambda claims: signed(claims | {"iss": claims["iss"] + "/"}),
    "other audience": with_(aud="other"),
    "no audience": with_(aud=None),
    "no audiences": with_(aud=[]),
    "several audiences, for nobody": with_(aud=[CLIENT, "other"]),
    "several audiences, for another": with_(aud=[CLIENT, "other"], azp="other"),
    "audience is an object": with_(aud={CLIENT: 1}),
    "azp of another": with_(azp="other"),
    "azp is a list": with_(azp=[CLIENT]),
    "other nonce": with_(nonce="x" * 43),
    "no nonce": with_(nonce=None),
    "nonce in a list": lambda claims: signed(claims | {"nonce": [claims["nonce"]]}),
    "expired": with_(exp=NOW - 61),
    "no expiry": with_(exp=None),
    "expiry is true": with_(exp=True),
    "expiry is text": with_(exp="tomorrow"),
    "expiry is no number": lambda claims: raw(claims, json.dumps(claims | {"exp": float("nan")})),
    "issued in the future": with_(iat=NOW + 3_600),
    "no time of issue": with_(iat=None),
    "not valid yet": with_(nbf=NOW + 3_600),
    "no subject": with_(sub=None),
    "subject is empty": with_(sub=""),
    "subject is a number": lambda claims: raw(claims, json.dumps(claims | {"sub": 7})),
    "subject is long": with_(sub="s" * 256),
    "at_hash of another": with_(at_hash=b64(hashlib.sha256(b"other").digest()[:16])),
    "at_hash is null": lambda claims: raw(claims, json.dumps(claims | {"at_hash": None})),
}


@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")  # it is refused, not warned of
@pytest.mark.parametrize("token", BAD)
async def test_an_id_token_that_is_wrong_lets_nobody_in(provider: Provider, token: str) -> None:
    """Protects the register from anybody who can make an ID token, or replays one; says why, and none of the token."""
    provider.token = BAD[token]
    with pytest.raises(SignInRefused) as refused:
        await signed_in(provider)
    assert re.fullmatch(r"[A-Za-z ,.:'()-]+", str(refused.value))
    assert "evil" not in str(refused.value)


async def test_only_algorithms_that_the_provider_offers_count(provider: Provider) -> None:
    """Protects where a key may be used in more ways than one: metadata says which."""
    provider.token = GOOD["PS256"]
    provider.more["id_token_signing_alg_values_supported"] = None  # then RS256, which each provider has to offer
    with pytest.raises(SignInRefused, match="algorithm is not allowed"):
        await signed_in(provider)
    provider.token = GOOD["RS256"]
    assert (await signed_in(provider)).name == "ada"
    provider.more["id_token_signing_alg_values_supported"] = ["HS256", "none", "RS512"]
    with pytest.raises(ProviderAway, match="no algorithm"):
        await signed_in(provider)


async def test_unknown_keys_cost_one_fetch(provider: Provider) -> None:
    """Protects the provider from whoever finishes sign-ins in a row; a key that is new counts after the pause."""
    ours = console(provider)
    await signed_in(provider, ours)
    provider.clock.advance(oidc.COOL_DOWN_SECONDS + 1)
    provider.token = lambda claims: signed(claims, OTHER, kid="new")
    for start in range(0, 100, 20):
        done = await asyncio.gather(
            *(signed_in(provider, ours) for _ in range(start, start + 20)), return_exceptions=True
        )
        assert {type(each) for each in done} == {SignInRefused}
    assert provider.asked.count("/keys") == 2
    provider.keys = [public(OTHER, "ES256", "new")]
    provider.clock.advance(oidc.COOL_DOWN_SECONDS + 1)
    assert (await signed_in(provider, ours)).name == "ada"
    provider.token = signed
    with pytest.raises(SignInRefused, match="none of the identity provider's"):  # which took it back
        await signed_in(provider, ours)


async def test_what_is_known_of_the_provider_counts_while_it_is_away_but_not_for_ever(provider: Provider) -> None:
    """Admins: a provider that is half down does not keep them out; a key of long ago does not let anybody in."""
    ours = console(provider)
    await signed_in(provider, ours)
    for path in ("/keys", "/.well-known/openid-configuration"):
        provider.answers[path] = (503, b"")
    provider.clock.advance(oidc.FRESH_SECONDS + 1)
    for _ in range(3):
        assert (await signed_in(provider, ours)).name == "ada"
    assert provider.asked.count("/keys") == provider.asked.count("/.well-known/openid-configuration") == 2
    provider.clock.advance(oidc.KEEP_SECONDS)
    with pytest.raises(ProviderAway):
        await ours.begin(None)


async def test_a_thousand_people_who_begin_cost_one_look_at_the_provider(provider: Provider) -> None:
    """Protects the provider, and those who wait: beginning needs no password."""
    good = console(provider)
    await asyncio.gather(*(good.begin(None) for _ in range(1_000)))
    assert provider.asked == ["/.well-known/openid-configuration"]
    provider.answers["/.well-known/openid-configuration"] = (500, b"")
    bad = console(provider)
    done = await asyncio.gather(*(bad.begin(None) for _ in range(1_000)), return_exceptions=True)
    assert {type(each) for each in done} == {ProviderAway}
    assert len(provider.asked) == 2
    del provider.answers["/.well-known/openid-configuration"]
    provider.clock.advance(oidc.FIRST_SECONDS)
    await bad.begin(None)


METADATA: Final[dict[str, Any]] = {
    "huge": b" " * oidc.MAX_ANSWER_BYTES + b"{}",
    "garbage": b"\xff{",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "empty": b"{}",
    "another issuer": {"issuer": "https://evil.example"},
    "an issuer with a slash more": {"issuer": "/"},
    "no token endpoint": {"token_endpoint": None},
    "token endpoint is a number": {"token_endpoint": 7},
    "token endpoint without TLS": {"token_endpoint": "http://idp.example/token"},
    "keys in a file": {"jwks_uri": "file:///etc/passwd"},
    "keys of a user": {"jwks_uri": "https://user:pass@idp.example/keys"},
    "a script for the browser": {"authorization_endpoint": "javascript:alert(1)//"},
    "a line break for the browser": {"authorization_endpoint": "https://idp.example/\r\nSet-Cookie: a=b"},
    "a backslash for the browser": {"authorization_endpoint": "https://idp.example\\@evil.example/"},
    "a port that is none": {"jwks_uri": "https://idp.example:99999999/keys"},
    "UserInfo without TLS": {"userinfo_endpoint": "http://idp.example/userinfo"},
}


@pytest.mark.parametrize("how", [*METADATA, "redirect", "500", "404"])
async def test_a_provider_that_describes_itself_badly_is_not_used(provider: Provider, how: str) -> None:
    """Protects people from being sent to sign in where an attacker wants, and the console's memory."""
    body = METADATA.get(how, b"{}")
    if isinstance(body, dict):
        provider.more |= {"issuer": f"{provider.issuer}/"} if how == "an issuer with a slash more" else body
    else:
        status = {"redirect": 302, "500": 500, "404": 404}.get(how, 200)
        for path in ("/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"):
            provider.answers[path] = (status, body)
    with pytest.raises(ProviderAway) as away:
        await console(provider).begin(None)
    assert "evil" not in str(away.value)
    assert "/elsewhere" not in provider.asked


async def test_a_provider_with_a_path_is_found_by_either_standard(provider: Provider) -> None:
    """Operators: OpenID Connect Discovery puts its path behind the issuer, RFC 8414 between host and path."""
    host, provider.issuer = provider.issuer, f"{provider.issuer}/tenant"
    for path in ("/tenant/.well-known/openid-configuration", "/.well-known/oauth-authorization-server/tenant"):
        provider.answers = {path: (200, json.dumps(provider.metadata).encode())}
        url, _ = await console(provider).begin(None)
        assert url.startswith(f"{host}/tenant/authorize?")


async def test_a_provider_that_hangs_holds_nobody_for_long(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Admins: they are told, and may try again."""
    monkeypatch.setattr(oidc, "ASK_SECONDS", 0.2)
    provider.held.clear()
    begun = time.monotonic()
    with pytest.raises(ProviderAway, match="in time"):
        await console(provider).begin(None)
    assert time.monotonic() - begun < SECONDS / 4
    provider.held.set()


async def test_a_provider_that_is_not_there_is_said_so(provider: Provider) -> None:
    """Admins: it is not them."""
    async with opened(provider.clock) as gone:
        pass
    with pytest.raises(ProviderAway, match="cannot be reached"):
        await console(gone).begin(None)


TOKEN_ANSWERS: Final[dict[str, tuple[int, bytes, type[Exception]]]] = {
    "500": (500, b"", ProviderAway),
    "redirect": (307, b"", ProviderAway),
    "huge": (200, b" " * oidc.MAX_ANSWER_BYTES + b"{}", ProviderAway),
    "400 of a proxy": (400, b"<html>", ProviderAway),
    "429": (429, b"{}", ProviderAway),
    "wrong secret": (401, b'{"error": "invalid_client"}', ProviderAway),
    "other error": (400, b'{"error": "unauthorized_client"}', ProviderAway),
    "code used": (400, b'{"error": "invalid_grant"}', SignInRefused),
    "garbage": (200, b"\xff", SignInRefused),
    "deep": (200, b"[" * 100_000, SignInRefused),
    "no ID token": (200, b'{"access_token": "a"}', SignInRefused),
    "no access token": (200, b'{"id_token": "a"}', SignInRefused),
}


@pytest.mark.parametrize("how", TOKEN_ANSWERS)
async def test_a_code_that_cannot_be_exchanged_lets_nobody_in(provider: Provider, how: str) -> None:
    """Admins hear whether it is them or the provider; the client's secret follows no redirect."""
    status, body, raised = TOKEN_ANSWERS[how]
    provider.answers["/token"] = (status, body)
    with pytest.raises(raised):
        await signed_in(provider)
    assert "/elsewhere" not in provider.asked


async def test_a_provider_that_takes_no_secrets_is_said_so(provider: Provider) -> None:
    """Operators: the setting that is wrong is named."""
    provider.more["token_endpoint_auth_methods_supported"] = ["private_key_jwt"]
    with pytest.raises(ProviderAway, match="client secrets"):
        await signed_in(provider)


@pytest.mark.parametrize("status", [500, 200])
async def test_without_keys_nobody_is_let_in(provider: Provider, status: int) -> None:
    """Protects the register: a signature that cannot be checked is none."""
    provider.answers["/keys"] = (status, b'{"keys": {"kty": "EC"}}')
    with pytest.raises(ProviderAway, match="keys"):
        await signed_in(provider)


async def test_an_answer_counts_for_the_browser_that_asked_and_once(provider: Provider) -> None:
    """Protects admins from being signed in as an attacker, and from who saw their callback."""
    ours = console(provider)
    (here, mine), (there, other) = await ours.begin(None), await ours.begin(None)
    swapped = provider.signs_in(there)
    with pytest.raises(SignInRefused, match="this browser"):
        await ours.finish(mine, swapped)
    with pytest.raises(SignInRefused, match="finished already"):  # not even with the right one: one try each
        await ours.finish(mine, provider.signs_in(here))
    assert (await ours.finish(other, swapped)).name == "ada"
    with pytest.raises(SignInRefused, match="finished already"):
        await ours.finish(other, swapped)
    # The code of another's browser, in an answer with our state: PKCE binds it to theirs.
    _, mine = await ours.begin(None)
    stolen = provider.signs_in((await ours.begin(None))[0])
    with pytest.raises(SignInRefused, match="takes the code no more"):
        await ours.finish(mine, stolen | {"state": mine.state})
    # A code a second time, whatever we remember.
    url, pending = await ours.begin(None)
    query = provider.signs_in(url)
    again = Pending(pending.state, pending.nonce, pending.code_verifier, "/console", pending.begun_at)
    assert (await ours.finish(pending, query)).name == "ada"
    with pytest.raises(SignInRefused, match="takes the code no more") as refused:
        await ours.finish(again, query)
    assert "script" not in str(refused.value)


async def test_of_two_callbacks_at_once_one_counts(provider: Provider) -> None:
    """Protects from a race for the code."""
    ours = console(provider)
    url, pending = await ours.begin(None)
    query = provider.signs_in(url)
    done = await asyncio.gather(*(ours.finish(pending, query) for _ in range(10)), return_exceptions=True)
    assert sorted(type(each).__name__ for each in done) == ["Admin", *["SignInRefused"] * 9]
    assert provider.asked.count("/token") == 1


@pytest.mark.parametrize(("seconds", "in_time"), [(599.0, True), (601.0, False)])
async def test_a_sign_in_that_took_too_long_is_over(provider: Provider, seconds: float, in_time: bool) -> None:
    """Protects who left a browser open at the provider's page."""
    ours = console(provider)
    url, pending = await ours.begin(None)
    query = provider.signs_in(url)
    provider.clock.monotonic += seconds
    if in_time:
        assert (await ours.finish(pending, query)).name == "ada"
    else:
        with pytest.raises(SignInRefused, match="too long"):
            await ours.finish(pending, query)


@pytest.mark.parametrize(
    ("change", "raised", "why"),
    [
        ({"state": None}, SignInRefused, "this browser"),
        ({"state": ""}, SignInRefused, "this browser"),
        ({"state": "é\udc80"}, SignInRefused, "this browser"),
        ({"code": None}, SignInRefused, "without a code"),
        ({"code": ""}, SignInRefused, "without a code"),
        ({"code": "c" * 5_000}, SignInRefused, "without a code"),
        ({"code": "é\udc80"}, SignInRefused, "without a code"),
        ({"code": "a&client_id=evil"}, SignInRefused, "takes the code no more"),
        ({"iss": "https://evil.example"}, SignInRefused, "another identity provider"),
        ({"iss": ""}, SignInRefused, "another identity provider"),
        ({"error": "access_denied"}, SignInRefused, "denied"),
        ({"error": "<script>"}, SignInRefused, "did not sign you in"),
        ({"error": ""}, SignInRefused, "did not sign you in"),
        ({"error": "login_required"}, SignInRefused, "did not sign you in"),
        ({"error": "temporarily_unavailable"}, ProviderAway, "right now"),
        ({"error": "access_denied", "iss": "https://evil.example"}, SignInRefused, "another identity provider"),
    ],
)
async def test_a_callback_that_is_not_as_it_should_be_lets_nobody_in(
    provider: Provider, change: dict[str, str | None], raised: type[Exception], why: str
) -> None:
    """Protects from made-up callbacks, and from the answer of one provider taken for another's (RFC 9207)."""
    ours = console(provider)
    url, pending = await ours.begin(None)
    query = {name: value for name, value in (provider.signs_in(url) | change).items() if value is not None}
    with pytest.raises(raised, match=why) as refused:
        await ours.finish(pending, query)
    assert "evil" not in str(refused.value)
    assert "script" not in str(refused.value)


async def test_a_provider_that_promises_to_name_itself_has_to(provider: Provider) -> None:
    """Protects from mix-up: an attacker's provider would leave the name out."""
    provider.more["authorization_response_iss_parameter_supported"] = True
    with pytest.raises(SignInRefused, match="does not say which"):
        await signed_in(provider)
    ours = console(provider)
    url, pending = await ours.begin(None)
    assert (await ours.finish(pending, provider.signs_in(url) | {"iss": provider.issuer})).name == "ada"


@pytest.mark.parametrize(
    ("claim", "about", "admin"),
    [
        ("groups", {"groups": ["admins"]}, True),
        ("groups", {"groups": ["x", "operators"]}, True),
        ("groups", {"groups": "admins"}, True),
        ("groups", {"groups": "admins,operators"}, False),
        ("groups", {"groups": "Admins"}, False),
        ("groups", {"groups": []}, False),
        ("groups", {"groups": None}, False),
        ("groups", {"groups": {"admins": True}}, False),
        ("groups", {"groups": [["admins"], 7, None, {"admins": 1}]}, False),
        ("groups", {"roles": ["admins"]}, False),
        ("https://idp.example/roles", {"https://idp.example/roles": ["admins"]}, True),
        ("sub", {"sub": "operators"}, True),
        ("sub", {"sub": "somebody"}, False),
        ("email", {"email": "admins", "email_verified": True}, True),
        ("email", {"email": "admins"}, False),
        ("email", {"email": "admins", "email_verified": False}, False),
        ("email", {"email": "admins", "email_verified": "true"}, False),
        ("email", {"email": "admins", "email_verified": 1}, False),
        ("is_admin", {"is_admin": True}, False),
    ],
)
async def test_who_is_an_admin_is_what_the_settings_say(
    provider: Provider, claim: str, about: dict[str, Any], admin: bool
) -> None:
    """Protects the register from everybody else whom the provider knows."""
    provider.about = {"sub": "u-17"} | about
    if admin:
        assert (await signed_in(provider, admin_claim=claim)).subject == provider.about["sub"]
    else:
        with pytest.raises(SignInRefused, match="no admin"):
            await signed_in(provider, admin_claim=claim)


async def test_a_provider_that_says_more_elsewhere_is_asked_there(provider: Provider) -> None:
    """Operators of providers that keep the ID token thin (Core section 5.4 lets them)."""
    provider.about = {"sub": "u-17", "preferred_username": "of the token"}
    provider.user_info = {"preferred_username": "ada", "groups": ["admins"]}
    assert (await signed_in(provider)).name == "ada"
    provider.more["userinfo_endpoint"] = None
    with pytest.raises(SignInRefused, match="no admin"):
        await signed_in(provider)


@pytest.mark.parametrize(
    ("about", "user_info", "raised"),
    [
        ({}, {"groups": ["admins"], "sub": "u-18"}, SignInRefused),
        ({}, {"groups": ["admins"], "sub": None}, SignInRefused),
        ({}, {"groups": ["admins"], "sub": ["u-17"]}, SignInRefused),
        ({}, {}, SignInRefused),
        ({"groups": ["staff"]}, {"groups": ["admins"]}, SignInRefused),
    ],
)
async def test_what_is_said_elsewhere_is_about_the_same_person(
    provider: Provider, about: dict[str, Any], user_info: dict[str, Any], raised: type[Exception]
) -> None:
    """Protects from the UserInfo of another (Core section 5.3.2); and what is signed goes first."""
    provider.about = {"sub": "u-17"} | about
    provider.user_info = user_info
    with pytest.raises(raised):
        await signed_in(provider)


@pytest.mark.parametrize(("status", "body"), [(500, b""), (401, b""), (302, b""), (200, b"\xff"), (200, b"[]")])
async def test_without_what_is_said_elsewhere_nobody_is_an_admin(provider: Provider, status: int, body: bytes) -> None:
    """Protects the register while the provider is half down."""
    provider.about = {"sub": "u-17"}
    provider.answers["/userinfo"] = (status, body)
    with pytest.raises(ProviderAway):
        await signed_in(provider)


async def test_an_address_is_verified_by_whoever_states_it(provider: Provider) -> None:
    """Protects from an address of one source that is verified by the other."""
    provider.about = {"sub": "u-17", "email_verified": True}
    provider.user_info = {"email": "admins"}
    with pytest.raises(SignInRefused, match="no admin"):
        await signed_in(provider, admin_claim="email")


ISSUER: Final = "https://idp.example"


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"preferred_username": "ada"}, "ada"),
        ({"preferred_username": "ada@example.com"}, "ada@example.com"),
        ({"preferred_username": "Ada.Lovelace+x_y-z"}, "Ada.Lovelace+x_y-z"),
        ({"preferred_username": "ada", "email": "a@example.com", "email_verified": True}, "ada"),
        ({"email": "a@example.com", "email_verified": True}, "a@example.com-"),
        ({"email": "a@example.com", "email_verified": False}, "u-17-"),
        ({"email": "a@example.com"}, "u-17-"),
        ({"preferred_username": ""}, "u-17-"),
        ({"preferred_username": ["ada"]}, "u-17-"),
        ({}, "u-17-"),
        ({"preferred_username": "Ada Lovelace"}, "Ada_Lovelace-"),
        ({"preferred_username": "ada\r\nX: y"}, "ada__X__y-"),
        ({"preferred_username": "\u202eada"}, "ada-"),
        ({"preferred_username": "-ada"}, "ada-"),
        ({"preferred_username": "é"}, "admin-"),
        ({"preferred_username": "a" * 64}, "a" * 64),
        ({"preferred_username": "a" * 65}, "a" * 53 + "-"),
        ({"preferred_username": "local-admin"}, "local-admin-"),
        ({"preferred_username": "Ada_Lovelace-0123456789"}, "Ada_Lovelace-0123456789-"),
    ],
)
def test_what_is_done_is_recorded_under_a_name_that_people_know(said: dict[str, Any], name: str) -> None:
    """Auditors: a name that had to be changed ends with a hash, so that it is still of one person."""
    named = name_of(said, issuer=ISSUER, subject="u-17")
    assert named == name or (name.endswith("-") and re.fullmatch(re.escape(name) + "[0-9a-f]{10}", named))


ANY_TEXT: Final = st.text() | st.text("aé _-@.", max_size=80) | st.from_regex(r"a-[0-9a-f]{10}", fullmatch=True)


@given(st.tuples(ANY_TEXT, st.text(min_size=1)), st.tuples(ANY_TEXT, st.text(min_size=1)))
@example(("a b", "1"), ("a_b", "2"))
def test_names_are_taken_by_the_services_and_are_never_of_two_people(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    """Auditors: whatever the provider calls somebody, the action is recorded, and under nobody else's name."""
    names = []
    for username, subject in (one, other):
        names.append(name_of({"preferred_username": username}, issuer=ISSUER, subject=subject))
        assert roles._PERSON.match(names[-1])
    if one[1] != other[1] and (one[0] or one[1]) != (other[0] or other[1]):
        assert names[0] != names[1]


@pytest.mark.parametrize(
    "value",
    [
        "/console",
        "/console/",
        "/console/clients",
        "/console/clients?name=a%20b&state=live",
        "/console/clients/0190-a.b_c~d/",
        "/console?x=https://other.example//y",
        "/console/clients?sort[]={a}|b",
    ],
)
def test_people_come_back_to_the_page_that_they_wanted(value: str) -> None:
    """Admins: a link from a colleague works, also when it takes a sign-in."""
    assert safe_return_to(value) == value


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "/",
        "console",
        "/consolex",
        "/console.evil.example",
        "//evil.example/console",
        "/\\evil.example/console",
        "https://evil.example/console",
        "javascript:alert(1)//console",
        "/console//evil.example",
        "/console/%2f%2fevil.example",
        "/console/../evil",
        "/console/%2E%2e/evil",
        "/console/./../evil",
        "/console/.%2e",
        "/console/.",
        "/console/%2e/clients",
        "/console\\..\\evil",
        "/console/%5c",
        "/console#x",
        "/console?x#y",
        "/console\r\nSet-Cookie: a=b",
        "/console\n",
        "/console/\t/evil",
        " /console",
        "/console/é",
        "/Console",
        "/console@evil.example",
        "/console:80",
        "/console/sign-in",
        "/console/sign-in/start",
        "/console/sign-in?return_to=/console",
        "/console/sign%2din/start",
        "/console/" + "a" * 3_000,
    ],
)
def test_nobody_is_sent_elsewhere(value: str | None) -> None:
    """Protects admins from a link to our own sign-in that ends at an attacker's page."""
    assert safe_return_to(value) == "/console"


PIECES: Final = st.lists(
    st.sampled_from(
        ["/console", "/", "//", "\\", "..", ".", "%2e", "%2f", "%5c", "?", "#", "@", ":", "evil.example", "a"]
    )
    | st.text(max_size=3),
    max_size=8,
).map("".join)


@given(st.text() | PIECES | PIECES.map("/console".__add__))
def test_wherever_people_are_sent_it_is_a_page_of_ours(value: str) -> None:
    """Protects admins from spellings that nobody thought of; two parsers of URLs agree on it."""
    found = safe_return_to(value)
    assert found in {value, "/console"}
    assert safe_return_to(found) == found
    for url in (
        urljoin("https://console.example/x/y", found),
        str(httpx.URL("https://console.example/x/y").join(found)),
    ):
        parts = urlsplit(url)
        assert (parts.scheme, parts.netloc) == ("https", "console.example")
        assert parts.path == "/console" or parts.path.startswith("/console/")


def wrong_settings() -> Iterator[dict[str, Any]]:
    for issuer in (
        "",
        "idp.example",
        "http://idp.example",
        "https://",
        "https://idp.example/?a",
        "https://idp.example#a",
    ):
        yield {"issuer": issuer}
    yield {"issuer": "https://a@idp.example"}
    yield {"redirect_uri": "http://console.example/console/sign-in/callback"}
    yield {"client_id": ""}
    yield {"client_secret": ""}
    yield {"scopes": "email"}
    yield {"admin_claim": ""}
    yield {"admin_values": ()}
    yield {"admin_values": ("admins", "")}


@pytest.mark.parametrize("wrong", list(wrong_settings()), ids=str)
def test_settings_that_are_not_safe_are_refused(wrong: dict[str, Any]) -> None:
    """Operators hear of it at the start, and not from an attacker."""
    right: dict[str, Any] = {
        "issuer": ISSUER,
        "client_id": CLIENT,
        "client_secret": SECRET,
        "redirect_uri": CALLBACK,
        "admin_claim": "groups",
        "admin_values": ("admins",),
    }
    assert SECRET not in repr(OidcSettings(**right))
    with pytest.raises(ValueError, match=r"https|client|scopes|admin"):
        OidcSettings(**(right | wrong))


@given(st.dictionaries(st.sampled_from(["code", "state", "iss", "error", "error_description"]), st.text()))
def test_any_callback_is_refused(query: dict[str, str]) -> None:
    """Protects the console from a callback that makes it answer 500; without the state, nobody is even asked."""
    ours = Oidc(
        OidcSettings(issuer=ISSUER, client_id=CLIENT, redirect_uri=CALLBACK, admin_claim="sub", admin_values=("a",)),
        http=HTTP,
        random=secrets.token_bytes,
        clock=time.time,
    )
    pending = Pending("s" * 43, "n" * 43, "v" * 43, "/console", time.monotonic())
    with pytest.raises(SignInRefused):
        asyncio.run(ours.finish(pending, query))
