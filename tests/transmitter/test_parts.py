"""What needs no server: keys, addresses, subjects, and what SETs say."""

import base64
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from grantbook import wire
from grantbook.events import Actor, Event, GrantRevoked, UserGrantsRevoked
from tests.sdk.given import deleted, registered, resumed, revoked, suspended, user_revoked
from tests.transmitter.given import verified
from transmitter import app, identifiers, keys, sets
from transmitter.identifiers import Rule, hears_of, with_rule
from transmitter.keys import KeysRefused
from transmitter.reach import OutOfReach, Reach

AT = datetime(2026, 11, 23, 12, 0, 0, 250_000, tzinfo=UTC)
PARTIES = sets.Parties("https://id.example", "https://idp.example")


def claims(event: Event, delivered: tuple[str, ...] = sets.SUPPORTED, **changed: Any) -> dict[str, Any] | None:
    outgoing = wire.encode(event, event_id="0195934e-2d00-7000-8000-000000000001")
    recorded = wire.decode(
        outgoing.subject,
        outgoing.headers,
        outgoing.body,
        position=7,
        recorded_at=changed.pop("recorded_at", AT + timedelta(milliseconds=3)),
    )
    return sets.claims_of(recorded, stream_id="s", audience="mail", delivered=delivered, parties=PARTIES)


def details(event: Event) -> dict[str, Any]:
    said = claims(event)
    assert said is not None
    (found,) = said["events"].values()
    assert isinstance(found, dict)
    return found


def test_the_same_event_is_the_same_set() -> None:
    """Receivers: what is sent again, also out of a feed that was made anew, is what they have seen, by its `jti`."""
    event = revoked("c", "g", "ada", at=AT)
    assert claims(event) == claims(event, recorded_at=AT + timedelta(days=3))
    said = claims(event)
    assert said is not None
    assert said["iat"] == int(AT.timestamp())
    assert said["txn"] == "0195934e-2d00-7000-8000-000000000001"
    assert said["jti"] == sets.jti_of("s", said["txn"]) != sets.jti_of("t", said["txn"])


def test_a_set_is_never_dated_before_what_it_says() -> None:
    """Users who were cut off: no token from before that passes because a fraction of a second was cut off, too."""
    assert details(user_revoked("ada", at=AT))["event_timestamp"] == int(AT.timestamp()) + 1
    assert details(revoked("c", "g", at=AT))["event_timestamp"] == int(AT.timestamp()) + 1
    late = claims(user_revoked("ada", at=AT), recorded_at=AT + timedelta(days=3))
    assert late is not None
    assert late["events"][sets.SESSION_REVOKED]["event_timestamp"] == int(AT.timestamp()) + 901


@pytest.mark.parametrize(
    ("reason", "kind", "initiator"),
    [
        ("user", "idp", "user"),
        ("admin", "admin", "admin"),
        ("reuse_detected", "idp", "policy"),
        ("token_revoked", "user", "user"),
        ("offboarded", "admin", "admin"),
        ("client_deleted", "system", "system"),
        ("of-a-later-version", "idp", "system"),
    ],
)
def test_who_and_why_is_said_in_the_words_of_caep(reason: str, kind: str, initiator: str) -> None:
    """Receivers that log or act by it: the initiator is one of CAEP's four, and the reason is never empty."""
    event = GrantRevoked(client_id="c", grant_id="g", user_id="u", reason=reason, at=AT, by=Actor(kind))
    found = details(event)
    assert found["initiating_entity"] == initiator
    assert found["reason_admin"]["en"].startswith(reason)


def test_what_receivers_did_not_ask_for_is_not_said() -> None:
    """Receivers of CAEP alone: they get what they know, and a suspension never as an end."""
    caep = (sets.SESSION_REVOKED,)
    assert claims(suspended("c", at=AT), caep) is None
    assert claims(resumed("c", at=AT), caep) is None
    assert claims(revoked("c", "g", at=AT), (sets.CLIENT_DELETED,)) is None
    said = claims(deleted("c", at=AT), caep)
    assert said is not None
    assert list(said["events"]) == [sets.SESSION_REVOKED]
    assert claims(registered("c", at=AT)) is None


def test_a_user_known_by_its_key_alone_is_said_by_its_key() -> None:
    """Users who were cut off by a path with their key: receivers can still find out who it is."""
    event = UserGrantsRevoked(user_key="~" + "a" * 43, at=AT, by=Actor("admin"))
    said = claims(event)
    assert said is not None
    assert said["sub_id"]["sub"] == "~" + "a" * 43
    assert details(event)["reason_admin"]["en"]


def test_keys_rotate(tmp_path: Path) -> None:
    """Receivers: SETs of yesterday's key verify while they are on their way; nobody signs with it any more."""
    path = tmp_path / "signing.json"
    app.make_signing_key(path)
    old = keys.load_signer(path)
    before = old.sign({"iss": "i", "aud": "a"})
    app.make_signing_key(path)
    new = keys.load_signer(path)
    published = json.loads(new.jwks)
    assert len(published["keys"]) == 2
    assert all("d" not in each for each in published["keys"])
    assert sum("d" in each for each in json.loads(path.read_text())["keys"]) == 1
    verified(before, published, audience="a", issuer="i")
    after = new.sign({"iss": "i", "aud": "a"})
    assert jwt.get_unverified_header(after)["kid"] == published["keys"][0]["kid"]
    for _ in range(keys.MAX_KEYS + 1):
        app.make_signing_key(path)
    assert len(json.loads(keys.load_signer(path).jwks)["keys"]) == keys.MAX_KEYS
    assert path.stat().st_mode & 0o777 == 0o600


def test_rsa_keys_sign_too() -> None:
    """Receivers of the CAEP interoperability profile, which know RS256 alone."""
    jwk = RSAAlgorithm.to_jwk(rsa.generate_private_key(65_537, 2_048), as_dict=True)
    signer = keys.Signer((jwk,))
    token = signer.sign({"iss": "i", "aud": "a"})
    assert jwt.get_unverified_header(token)["alg"] == "RS256"
    verified(token, json.loads(signer.jwks), audience="a", issuer="i")
    assert {"d", "p", "q"}.isdisjoint(json.loads(signer.jwks)["keys"][0])


def test_a_key_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    """Operators: what is wrong with a key file is said before anything is signed or sealed with it."""
    path = tmp_path / "keys.json"
    with pytest.raises(KeysRefused, match="no key file"):
        keys.load_signer(path)
    for text in (
        "",
        "[]",
        '{"keys": []}',
        '{"keys": [{"kty": "EC"}]}',
        '{"keys": [{"kty": "oct", "k": "AAAA"}]}',
        '{"keys": [{"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA", "d": "AAAA"}]}',
    ):
        keys.write_private(path, text.encode())
        with pytest.raises(KeysRefused):
            keys.load_signer(path)
        with pytest.raises(KeysRefused):
            keys.load_sealing_key(path)
    path.unlink()
    app.make_signing_key(path)
    public = json.loads(path.read_text())["keys"][0]
    del public["d"]
    with pytest.raises(KeysRefused, match="must be private"):
        keys.Signer((public,))
    path.chmod(0o640)
    with pytest.raises(KeysRefused, match="chmod 600"):
        keys.load_signer(path)


def test_a_sealing_key_is_made_once(tmp_path: Path) -> None:
    """Operators: the key that opens receivers' secrets is never made over."""
    path = tmp_path / "sealing.key"
    app.make_sealing_key(path)
    assert keys.load_sealing_key(path) == base64.b64decode(path.read_bytes())
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(KeysRefused, match="already"):
        app.make_sealing_key(path)


@pytest.mark.parametrize(
    "url",
    [
        "http://receiver.example/",
        "http://127.0.0.1/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://10.1.2.3/",
        "https://169.254.169.254/latest/meta-data",
        "https://[fd00::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[64:ff9b::a00:1]/",
        "https://[2002:a00:1::]/",
        "https://0.0.0.0/",
        "https://[fec0::1]/",
        "https://[::7f00:1]/",
        "https://[64:ff9b:1::a00:1]/",
        "https://[::ffff:0:10.0.0.1]/",
        "https://[2001:0:4136:e378:8000:63bf:f5ff:fffe]/",
        "https://224.0.0.1/",
        "https://user:word@receiver.example/",
        "https://receiver.example/#here",
        "https://receiver.example\\@evil.example/",
        "https://receiver.example/ ",
        "https://réceiver.example/",
        "https:///events",
        "ftp://receiver.example/",
        "file:///etc/passwd",
        "receiver.example",
        "https://receiver.example:99999/",
        "",
    ],
)
def test_what_must_not_be_pushed_to_is_refused(url: str) -> None:
    """Operators: a receiver cannot have the transmitter call into their network, or anything but https."""
    with pytest.raises(ValueError, match="URL"):
        Reach().check_url(url)


def test_operators_allow_hosts_and_networks() -> None:
    """Operators: receivers of their own, in networks of their own, can be let in; nobody else is then."""
    Reach().check_url("https://receiver.example:8443/events?of=grantbook")
    Reach(networks=["10.0.0.0/8"]).check_url("https://10.1.2.3/")
    Reach(loopback=True).check_url("http://127.0.0.1:8000/")
    with pytest.raises(ValueError, match="https"):
        Reach(loopback=True).check_url("http://receiver.example/")
    Reach().check_url("https://[2606:4700::1111]/")
    Reach().check_url("https://[64:ff9b::808:808]/")
    some = Reach(hosts=["a.example", ".b.example"])
    some.check_url("https://a.example/")
    some.check_url("https://x.b.example/")
    for url in ("https://b.example/", "https://xa.example/", "https://a.example.evil.example/"):
        with pytest.raises(ValueError, match="operator allows"):
            some.check_url(url)


async def test_names_are_resolved_before_they_are_trusted() -> None:
    """Operators: a public name for a private address leads nowhere."""
    with pytest.raises(OutOfReach):
        await Reach().address_of(httpx.URL("https://localhost/"))
    assert await Reach(networks=["127.0.0.0/8", "::1/128"]).address_of(httpx.URL("https://localhost/"))
    with pytest.raises(OutOfReach):
        await Reach().address_of(httpx.URL("https://name.invalid/"))


def test_rules_about_subjects() -> None:
    """Receivers: a user that is removed is not heard of, in whatever session; nothing else is hidden by that."""
    user, other = identifiers.iss_sub("i", "bob"), identifiers.iss_sub("i", "ada")
    app_ = identifiers.opaque("c")
    session = identifiers.complex_of(user=user, application=app_, session=identifiers.opaque("g"))
    rules = with_rule((), Rule(hears=False, subject=user))
    assert not hears_of(rules, user)
    assert not hears_of(rules, session)
    assert hears_of(rules, other)
    assert hears_of(rules, identifiers.complex_of(application=app_))
    # What is added after that is heard of, although what it is part of was removed.
    some = with_rule(rules, Rule(hears=True, subject=identifiers.complex_of(user=user, application=app_)))
    assert hears_of(some, session)
    assert not hears_of(some, identifiers.complex_of(user=user, application=identifiers.opaque("d")))
    assert with_rule(rules, Rule(hears=True, subject=user)) == ()
    full: tuple[Rule, ...] = ()
    for number in range(identifiers.MAX_RULES):
        full = with_rule(full, Rule(hears=False, subject=identifiers.opaque(str(number))))
    with pytest.raises(identifiers.TooManyRules):
        with_rule(full, Rule(hears=False, subject=user))


@pytest.mark.parametrize(
    "subject",
    [
        {},
        {"format": "opaque"},
        {"id": "x"},
        {"format": 1, "id": "x"},
        {"format": "complex"},
        {"format": "complex", "user": "bob"},
        {"format": "complex", "user": {"format": "complex", "user": {"format": "opaque", "id": "x"}}},
    ],
)
def test_what_is_no_subject_identifier(subject: dict[str, Any]) -> None:
    """Receivers under development: a subject that could never match is refused."""
    assert not identifiers.is_identifier(subject)


def test_the_command_makes_keys(tmp_path: Path) -> None:
    """Operators: keys come from one command."""
    import subprocess  # noqa: PLC0415  for this alone
    import sys  # noqa: PLC0415  for this alone

    command = [sys.executable, "-m", "transmitter", "keys"]
    asked = [*command, "--signing", str(tmp_path / "s.json"), "--sealing", str(tmp_path / "k")]
    assert subprocess.run(asked, env=os.environ, check=False, capture_output=True).returncode == 0
    keys.load_signer(tmp_path / "s.json")
    assert subprocess.run(asked, env=os.environ, check=False, capture_output=True).returncode != 0
    assert subprocess.run(command, env=os.environ, check=False, capture_output=True).returncode != 0
