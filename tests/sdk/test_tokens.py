"""Access tokens: what verifies, all that must not, and what unknown keys cost."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grantbook.sdk import clocks, tokens
from grantbook.sdk.tokens import Access, JwtVerifier, KeysUnavailable, TokenRefused
from tests.sdk.tokens import AUDIENCE, EC, ED, ISSUER, KEYS, OTHER, RSA, claims, public, token

SECONDS = 20.0


def verifier(**more: Any) -> JwtVerifier:
    return JwtVerifier(**({"issuer": ISSUER, "audience": AUDIENCE, "keys": KEYS} | more))


def b64(data: bytes | str) -> str:
    return base64.urlsafe_b64encode(data.encode() if isinstance(data, str) else data).decode().rstrip("=")


def by_hand(header: object, payload: object, signature: bytes = b"x" * 64) -> str:
    return ".".join((b64(json.dumps(header)), b64(json.dumps(payload)), b64(signature)))


def hmac_with_public_key() -> str:
    """The oldest trick: the public key taken for a shared secret."""
    head = b64(json.dumps({"alg": "HS256", "typ": "at+jwt", "kid": "ec"}))
    signed = f"{head}.{b64(json.dumps(claims()))}"
    secret = json.dumps(public(EC, "ES256", "ec")).encode()
    return f"{signed}.{b64(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


def tampered() -> str:
    head, _, signature = token().split(".")
    return f"{head}.{b64(json.dumps(claims(client_id='other')))}.{signature}"


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(EC, "ES256", "ec"), (RSA, "RS256", "rsa"), (RSA, "PS256", "rsa"), (ED, "EdDSA", "ed"), (EC, "ES256", None)],
)
async def test_a_good_token_says_who_may_do_what(key: Any, algorithm: str, kid: str | None) -> None:
    """RFC 9068 section 4: agents are let in, with each algorithm that is allowed."""
    access = await verifier().verify(token(key, algorithm, kid))
    assert isinstance(access, Access)
    assert (access.client_id, access.grant_id, access.user_id) == ("c", "g", "ada")
    assert access.scopes == ("read", "write")
    assert access.expires_at - access.issued_at == 300
    assert access.claims["jti"] == "1"


NOW = int(time.time())
BAD: dict[str, Callable[[], str]] = {
    "empty": lambda: "",
    "one part": lambda: "abc",
    "two parts": lambda: "abc.def",
    "four parts": lambda: f"{token()}.x",
    "spaces": lambda: f" {token()}",
    "not base64": lambda: "a+b.c/d.e=f",
    "huge": lambda: "a" * 1_000_000,
    "header is no JSON": lambda: f"{b64('x')}.{b64('{}')}.{b64('x')}",
    "header is a list": lambda: by_hand([], claims()),
    "header without alg": lambda: by_hand({"typ": "at+jwt", "kid": "ec"}, claims()),
    "payload is no JSON": lambda: f"{token().split('.')[0]}.{b64('x')}.{b64('x')}",
    "payload is a list": lambda: by_hand({"alg": "ES256", "typ": "at+jwt", "kid": "ec"}, []),
    "alg none": lambda: by_hand({"alg": "none", "typ": "at+jwt", "kid": "ec"}, claims(), b""),
    "alg nOnE": lambda: by_hand({"alg": "nOnE", "typ": "at+jwt", "kid": "ec"}, claims()),
    "alg HS256 of the public key": hmac_with_public_key,
    "alg is a list": lambda: by_hand({"alg": ["ES256"], "typ": "at+jwt"}, claims()),
    "alg ES512": lambda: by_hand({"alg": "ES512", "typ": "at+jwt", "kid": "ec"}, claims()),
    "alg RS256 with the EC key's id": lambda: token(RSA, "RS256", "ec"),
    "no signature": lambda: f"{token().rsplit('.', 1)[0]}.",
    "signature of zeros": lambda: f"{token().rsplit('.', 1)[0]}.{b64(bytes(64))}",
    "payload changed": tampered,
    "another's key with a known id": lambda: token(OTHER),
    "a key for encryption": lambda: token(OTHER, kid="enc"),
    "unknown key": lambda: token(kid="nobody"),
    "broken key": lambda: token(kid="broken"),
    "shared key": lambda: token(kid="oct"),
    "kid is a number": lambda: by_hand({"alg": "ES256", "typ": "at+jwt", "kid": 7}, claims()),
    "kid is a path": lambda: token(kid="../../../dev/null"),
    "typ JWT": lambda: token(typ="JWT"),
    "typ missing": lambda: by_hand({"alg": "ES256", "kid": "ec"}, claims()),
    "typ of a security event": lambda: token(typ="secevent+jwt"),
    "crit": lambda: token(header_crit=["x"], header_x=1),
    "b64 false": lambda: token(header_b64=False),
    "own key in jwk": lambda: token(OTHER, kid="nobody", header_jwk=public(OTHER, "ES256", "nobody")),
    "own keys at jku": lambda: token(OTHER, kid="nobody", header_jku="http://127.0.0.1:1/keys"),
    "own certificate at x5u": lambda: token(OTHER, kid="nobody", header_x5u="http://127.0.0.1:1/cert"),
    "other issuer": lambda: token(iss="https://idp.example.evil"),
    "no issuer": lambda: token(iss=None),
    "other audience": lambda: token(aud="https://other.example"),
    "no audience": lambda: token(aud=None),
    "empty audiences": lambda: token(aud=[]),
    "expired": lambda: token(exp=NOW - 60),
    "no expiry": lambda: token(exp=None),
    "expiry is text": lambda: token(exp="tomorrow"),
    "expiry is true": lambda: token(exp=True),
    "expiry beyond all time": lambda: token(exp=10**30),
    "expiry beyond all numbers": lambda: by_hand_signed(exp=10**400),
    "issued before all numbers": lambda: by_hand_signed(iat=-(10**400)),
    "expiry is no number": lambda: by_hand_signed(exp=math.nan),
    "issued in the future": lambda: token(iat=NOW + 3_600),
    "no time of issue": lambda: token(iat=None),
    "not valid yet": lambda: token(nbf=NOW + 3_600),
    "nbf is a list": lambda: token(nbf=[]),
    "no client": lambda: token(client_id=None),
    "client is a list": lambda: token(client_id=["c"]),
    "no grant": lambda: token(grant_id=None),
    "grant is empty": lambda: token(grant_id=""),
    "no user": lambda: token(sub=None),
    "user is a number": lambda: by_hand_signed(sub=7),
    "scope is a list": lambda: token(scope=["read"]),
}


def by_hand_signed(**more: Any) -> str:
    """What the library would not sign: claims of another type."""
    import jwt  # noqa: PLC0415  only for this

    payload = json.dumps(claims() | more).encode()
    return jwt.api_jws.encode(payload, EC, "ES256", headers={"typ": "at+jwt", "kid": "ec"})


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
async def test_a_bad_token_is_refused_and_not_repeated(bad: Callable[[], str]) -> None:
    """RFC 8725: whoever made it, it lets nobody in, and what is said of it holds none of it."""
    made = bad()
    with pytest.raises(TokenRefused) as refused:
        await verifier().verify(made)
    assert not isinstance(refused.value, KeysUnavailable)
    for part in made.split("."):
        assert len(part) < 8 or part not in str(refused.value)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.builds(lambda *parts: ".".join(parts), *[st.text("abcAB01-_=", max_size=40)] * 3))
def test_any_text_is_refused(text: str) -> None:
    """Protects the service from a header that makes it answer 500."""
    with pytest.raises(TokenRefused):
        asyncio.run(verifier().verify(text))


async def test_what_an_issuer_from_before_the_standard_sends_can_be_allowed() -> None:
    """Operators of such an issuer choose it; nobody gets it by default."""
    assert (await verifier(any_type=True).verify(token(typ="JWT"))).client_id == "c"
    assert (await verifier(grant_claim="sid").verify(token(sid="s"))).grant_id == "s"
    with pytest.raises(TokenRefused):
        await verifier(algorithms=["RS256"]).verify(token())


@pytest.mark.parametrize(
    "wrong",
    [
        {"algorithms": ["HS256"]},
        {"algorithms": []},
        {"issuer": ""},
        {"audience": ""},
        {"keys": None},
        {"keys": {"keys": []}},
        {"keys": None, "jwks_url": "http://idp.example/keys"},
        {"keys": None, "jwks_url": "file:///etc/passwd"},
        {"jwks_url": "https://idp.example/keys"},
    ],
)
def test_settings_that_are_not_safe_are_refused(wrong: dict[str, Any]) -> None:
    """Operators hear of it at the start, and not from an attacker."""
    with pytest.raises(ValueError, match=r"needed|some of|can be used|https"):
        verifier(**wrong)


class Issuer:
    """An issuer's keys over HTTP; it can be broken in many ways."""

    def __init__(self) -> None:
        self.fetches = 0
        self.status = 200
        self.body = json.dumps(KEYS).encode()
        self.url = ""
        self.held = asyncio.Event()
        self.held.set()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            self.fetches += 1
            await self.held.wait()
            head = f"HTTP/1.1 {self.status} x\r\nLocation: /other\r\nContent-Length: {len(self.body)}\r\n"
            writer.write(head.encode() + b"Connection: close\r\n\r\n" + self.body)
            await writer.drain()
        writer.close()


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    made = Issuer()
    server = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"
    async with server:
        yield made


async def test_one_odd_key_spoils_no_other() -> None:
    """An issuer that publishes a key which nobody understands yet (RFC 7517 section 5)."""
    odd = [{"kty": []}, {"kty": "EC", "alg": {}}, {"kty": "EC", "use": []}, "x", None, {"kty": "EC", "kid": []}]
    keys = {"keys": [*odd, public(EC, "ES256", "ec")]}
    assert (await verifier(keys=keys).verify(token())).client_id


async def test_ten_thousand_unknown_keys_cost_one_fetch(issuer: Issuer) -> None:
    """Protects the issuer from a flood of made-up key ids, and the service from waiting for it."""
    asking = verifier(keys=None, jwks_url=issuer.url)
    assert (await asking.verify(token())).client_id == "c"
    head = {"alg": "ES256", "typ": "at+jwt"}
    payload = claims()

    async def one(number: int) -> None:
        with pytest.raises(TokenRefused):
            await asking.verify(by_hand(head | {"kid": f"k{number}"}, payload))

    for start in range(0, 10_000, 1_000):
        await asyncio.gather(*(one(number) for number in range(start, start + 1_000)))
    assert issuer.fetches == 1
    assert (await asking.verify(token())).client_id == "c"
    await asking.aclose()


async def test_a_key_that_is_new_is_found_after_the_pause(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects agents through the issuer's change of keys; a key that it took back stops counting."""
    asking = verifier(keys=None, jwks_url=issuer.url)
    await asking.verify(token())
    issuer.body = json.dumps({"keys": [public(OTHER, "ES256", "new")]}).encode()
    with pytest.raises(TokenRefused):
        await asking.verify(token(OTHER, kid="new"))
    monkeypatch.setattr(tokens, "COOL_DOWN_SECONDS", 0.0)
    assert (await asking.verify(token(OTHER, kid="new"))).client_id == "c"
    with pytest.raises(TokenRefused):
        await asking.verify(token())
    await asking.aclose()


@pytest.mark.parametrize("how", ["500", "redirect", "garbage", "list", "too large", "empty"])
async def test_without_keys_nobody_is_let_in_and_it_is_said_why(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Protects from letting in, and agents from being told that their token is bad when nobody knows."""
    good = issuer.body
    issuer.status = {"500": 500, "redirect": 302}.get(how, 200)
    issuer.body = {"garbage": b"\xff{", "list": b"[]", "too large": b" " * 300_000 + good, "empty": b'{"keys":[]}'}.get(
        how, good
    )
    asking = verifier(keys=None, jwks_url=issuer.url)
    for _ in range(3):
        with pytest.raises(KeysUnavailable):
            await asking.verify(token())
    assert issuer.fetches == 1
    issuer.status, issuer.body = 200, good
    monkeypatch.setattr(tokens, "FIRST_SECONDS", 0.0)
    assert (await asking.verify(token())).client_id == "c"
    # What was known counts while the issuer is away.
    issuer.status = 500
    monkeypatch.setattr(tokens, "COOL_DOWN_SECONDS", 0.0)
    monkeypatch.setattr(tokens, "REFRESH_SECONDS", 0.0)
    assert (await asking.verify(token())).client_id == "c"
    monkeypatch.setattr(tokens, "KEEP_SECONDS", 0.0)
    with pytest.raises(KeysUnavailable):
        await asking.verify(token())
    await asking.aclose()


async def test_keys_grow_old_while_the_machine_sleeps(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects a resource on a laptop that was closed for days: a key that was taken back meanwhile does not count."""
    asking = verifier(keys=None, jwks_url=issuer.url)
    await asking.verify(token())
    issuer.status = 500
    awake = clocks.now
    monkeypatch.setattr(clocks, "now", lambda: awake() + tokens.KEEP_SECONDS)
    with pytest.raises(KeysUnavailable):
        await asking.verify(token())
    await asking.aclose()


async def test_an_issuer_that_hangs_holds_up_nobody_with_a_known_key(issuer: Issuer) -> None:
    """Agents: while the issuer is in trouble, calls are as fast as ever; and however many, it is asked once."""
    asking = verifier(keys=None, jwks_url=issuer.url)
    await asking.verify(token())
    kept = asking._keys
    assert isinstance(kept, tokens._FetchedKeys)
    kept._fetched_at -= 2 * tokens.REFRESH_SECONDS
    kept._tried_at -= tokens.COOL_DOWN_SECONDS + 1.0
    issuer.held.clear()
    for _ in range(100):
        assert (await asking.verify(token())).client_id == "c"
    async with asyncio.timeout(SECONDS):
        while issuer.fetches < 2:
            await asyncio.sleep(0.01)
    unknown = asyncio.create_task(asking.verify(token(kid="nobody")))
    leaving = asyncio.create_task(asking.verify(token(kid="nobody")))
    done, _ = await asyncio.wait((unknown, leaving), timeout=0.1)
    assert not done
    leaving.cancel()  # who does not wait takes the fetch from nobody
    issuer.held.set()
    with pytest.raises(TokenRefused, match="none of the issuer's"):
        await unknown
    assert issuer.fetches == 2
    assert clocks.now() - kept._fetched_at < SECONDS
    await asking.aclose()
