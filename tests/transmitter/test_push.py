"""Delivery by push, from a real feed to a real HTTP receiver."""

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from litestar import Response
from nats.aio.client import Client

from grantbook.events import Event
from tests.sdk.given import deleted, resumed, revoked, sourced, suspended, user_revoked, write
from tests.transmitter.given import IDP, Receiver, Transmitter, until, unverified, verified
from transmitter import delivery, push, sets
from transmitter.reach import Reach

SECRET = "Bearer secret-of-the-receiver"


async def test_every_revocation_arrives_signed(log: Client, transmitter: Transmitter, receiver: Receiver) -> None:
    """Receivers: each event is one SET that verifies against the published keys, and says who, when and why."""
    stream = await transmitter.pushed_to(receiver, authorization_header=SECRET)
    await write(log, revoked("c", "g1", "ada", reason="reuse_detected"), user_revoked("ada"), deleted("c"))
    await until(lambda: len(receiver.tokens) == 3)
    jwks = await transmitter.jwks()
    for token in receiver.tokens:
        claims = verified(token, jwks, audience=stream["aud"], issuer=transmitter.url)
        assert {"exp", "sub"}.isdisjoint(claims)
        assert len(claims["events"]) == 1
    by_type = {(*each["events"],): each for each in receiver.claims if each["sub_id"]["format"] == "complex"}
    grant = by_type[sets.SESSION_REVOKED,]
    assert grant["sub_id"] == {
        "format": "complex",
        "user": {"format": "iss_sub", "iss": IDP, "sub": "ada"},
        "application": {"format": "opaque", "id": "c"},
        "session": {"format": "opaque", "id": "g1"},
    }
    details = grant["events"][sets.SESSION_REVOKED]
    assert details["initiating_entity"] == "policy"
    assert details["reason_admin"]["en"].startswith("reuse_detected")
    assert abs(details["event_timestamp"] - datetime.now(UTC).timestamp()) < 60
    assert by_type[sets.CLIENT_DELETED,]["sub_id"]["application"] == {"format": "opaque", "id": "c"}
    (user,) = [each for each in receiver.claims if each["sub_id"]["format"] == "iss_sub"]
    assert user["sub_id"] == {"format": "iss_sub", "iss": IDP, "sub": "ada"}
    for headers in receiver.headers:
        assert headers["content-type"] == "application/secevent+jwt"
        assert headers["authorization"] == SECRET
        assert headers["host"] == f"127.0.0.1:{receiver.port}"


async def test_a_receiver_that_was_away_gets_everything(log: Client, transmitter: Transmitter) -> None:
    """Users: a revocation is not lost because a receiver was down, or answered with errors, when it happened."""
    receiver = Receiver()
    await transmitter.pushed_to(receiver)
    await write(log, *(revoked("c", f"g{number}") for number in range(40)))
    await until(lambda: transmitter.service.transmission.failing == 1)
    broken = 2

    def answer(_: str) -> Response[None]:
        nonlocal broken
        broken -= 1
        return Response(None, status_code=503 if broken >= 0 else 202)

    receiver.answer = answer
    async with receiver.listening():
        await until(lambda: len({each["jti"] for each in receiver.claims}) == 40)
        await until(lambda: transmitter.service.transmission.failing == 0)
        assert len(receiver.tokens) == 40


async def test_what_is_about_one_client_keeps_its_order(
    log: Client, transmitter: Transmitter, receiver: Receiver
) -> None:
    """Users of a client that was resumed: its suspension does not arrive after that, whatever fails in between."""
    await transmitter.pushed_to(receiver)
    failures = iter(range(1_000))
    receiver.answer = lambda _: Response(None, status_code=500 if next(failures) % 3 == 0 else 202)
    events: list[Event] = []
    for number in range(6):
        events += [suspended(f"c{number}"), resumed(f"c{number}")]
    await write(log, *events)
    await until(lambda: len(receiver.tokens) == 12)
    heard: dict[str, list[str]] = {}
    for each in receiver.claims:
        heard.setdefault(each["sub_id"]["application"]["id"], []).extend(each["events"])
    assert heard == {f"c{number}": [sets.CLIENT_SUSPENDED, sets.CLIENT_RESUMED] for number in range(6)}


async def test_a_set_that_is_refused_does_not_hold_up_others(
    log: Client, transmitter: Transmitter, receiver: Receiver
) -> None:
    """Users: what a receiver cannot digest is tried for long, and what is behind it arrives meanwhile."""
    refused: list[str] = []

    def answer(token: str) -> Response[dict[str, str]]:
        if unverified(token)["sub_id"]["session"]["id"] == "bad":
            refused.append(token)
            return Response({"err": "invalid_request", "description": "no"}, status_code=400)
        return Response({}, status_code=202)

    receiver.answer = answer
    await transmitter.pushed_to(receiver)
    await write(log, revoked("c", "bad"))
    await until(lambda: len(refused) > 0)
    await write(log, revoked("c", "good"))
    await until(lambda: len(receiver.tokens) == 1)
    await until(lambda: len(refused) >= 2)  # seconds have passed, not hours: it comes again
    assert len({unverified(each)["jti"] for each in refused}) == 1


async def test_a_set_that_breaks_its_receiver_does_not_hold_up_others(
    log: Client, transmitter: Transmitter, receiver: Receiver
) -> None:
    """Users of a receiver with a fault: one SET that it answers 500 to is not the end of all others."""

    def answer(token: str) -> Response[dict[str, str]]:
        return Response({}, status_code=500 if unverified(token)["sub_id"]["session"]["id"] == "bad" else 202)

    receiver.answer = answer
    await transmitter.pushed_to(receiver)
    await write(log, revoked("c", "bad"), *(revoked("c", f"good{number}") for number in range(40)))
    await until(lambda: len(receiver.tokens) == 40)


@pytest.mark.parametrize("error", ["invalid_key", "invalid_issuer", "invalid_audience", "access_denied"])
async def test_what_a_receiver_has_to_set_right_is_never_given_up(
    log: Client, transmitter: Transmitter, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    """Users: a receiver that keeps our keys for minutes knows the new one after that; the revocation counts then."""
    monkeypatch.setattr(delivery, "REFUSED_SECONDS", 0.0)
    monkeypatch.setattr(delivery, "MAX_BACKOFF_SECONDS", 0.05)
    tries = 0

    def answer(_: str) -> Response[dict[str, str]]:
        nonlocal tries
        tries += 1
        return Response({"err": error}, status_code=400 if tries <= 2 * delivery.MAX_REFUSALS else 202)

    receiver.answer = answer
    await transmitter.pushed_to(receiver)
    await write(log, revoked("c", "g"))
    await until(lambda: len(receiver.tokens) == 1)


async def test_what_is_refused_for_hours_is_given_up(
    log: Client, transmitter: Transmitter, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operators: what can never be delivered is not tried for ever."""
    monkeypatch.setattr(delivery, "REFUSED_SECONDS", 0.0)
    monkeypatch.setattr(delivery, "MAX_BACKOFF_SECONDS", 0.05)
    refused: list[str] = []

    def answer(token: str) -> Response[dict[str, str]]:
        refused.append(token)
        return Response({"err": "invalid_request"}, status_code=400)

    receiver.answer = answer
    given_up = delivery.SETS.labels("given_up")._value.get()
    await transmitter.pushed_to(receiver)
    await write(log, revoked("c", "g"))
    await until(lambda: delivery.SETS.labels("given_up")._value.get() > given_up)
    assert len(refused) == delivery.MAX_REFUSALS


async def test_a_receiver_that_does_not_let_us_in_is_no_refusal(
    log: Client, transmitter: Transmitter, receiver: Receiver
) -> None:
    """Users of a receiver whose secret was mistyped: nothing is given up until it is set right."""
    tries = 0

    def answer(_: str) -> Response[dict[str, str]]:
        nonlocal tries
        tries += 1
        return Response({"err": "authentication_failed"}, status_code=400 if tries <= 6 else 202)

    receiver.answer = answer
    stream = await transmitter.pushed_to(receiver)
    await write(log, revoked("c", "g"))
    await until(lambda: tries >= 3)
    # The receiver sets it right; that begins anew, at once.
    changed = {"method": "urn:ietf:rfc:8935", "endpoint_url": receiver.url, "authorization_header": "Basic eA=="}
    tries = 6
    await transmitter.mail.patch("/ssf/v1/streams", json={"stream_id": stream["stream_id"], "delivery": changed})
    await until(lambda: len(receiver.tokens) == 1)
    assert receiver.headers[-1]["authorization"] == "Basic eA=="


async def test_redirects_are_not_followed(log: Client, transmitter: Transmitter, receiver: Receiver) -> None:
    """Operators: a receiver cannot send the transmitter, and its own secret, elsewhere."""
    receiver.answer = lambda _: Response(None, status_code=307, headers={"Location": "/elsewhere"})
    await transmitter.pushed_to(receiver)
    await write(log, revoked("c", "g"))
    await until(lambda: transmitter.service.transmission.failing == 1)
    assert receiver.tokens == []


async def test_a_paused_stream_holds_and_then_delivers(
    log: Client, transmitter: Transmitter, receiver: Receiver
) -> None:
    """Receivers under maintenance: what happened meanwhile comes afterwards, in the order in which it did."""
    stream_id = (await transmitter.pushed_to(receiver))["stream_id"]
    await write(log, revoked("c", "before"))
    await until(lambda: len(receiver.tokens) == 1)
    await transmitter.set_status(stream_id, "paused")
    await until(lambda: not transmitter.service.transmission._at_work)
    await write(log, suspended("c"), revoked("c", "meanwhile"), resumed("c"))
    await transmitter.mail.post("/ssf/v1/verify", json={"stream_id": stream_id, "state": "s"})
    # Another stream shows that they would have come.
    other = Receiver()
    async with other.listening():
        await transmitter.pushed_to(other)
        await write(log, revoked("c", "after"))
        await until(lambda: len(other.tokens) == 1)
    assert len(receiver.tokens) == 1
    await transmitter.set_status(stream_id, "enabled")
    await until(lambda: len(receiver.tokens) == 6)


async def test_a_disabled_stream_hears_nothing(log: Client, transmitter: Transmitter, receiver: Receiver) -> None:
    """Receivers that turned a stream off: nothing is kept for them, and they begin again with what happens then."""
    stream_id = (await transmitter.pushed_to(receiver))["stream_id"]
    transmission = transmitter.service.transmission
    await until(lambda: bool(transmission._at_work))
    [at_work] = transmission._at_work.values()
    await transmitter.set_status(stream_id, "disabled")
    await until(lambda: [each.status for each in transmission.streams.values()] == ["disabled"])
    await until(at_work.task.done)  # up to Python 3.11 that takes a second try now and then: see `tasks.end`
    await write(log, revoked("c", "meanwhile"))
    await sourced(log, 1)
    other = Receiver()
    async with other.listening():
        await transmitter.pushed_to(other)
        await write(log, revoked("c", "seen"))
        await until(lambda: len(other.tokens) == 1)
    await transmitter.set_status(stream_id, "enabled")
    await write(log, revoked("c", "after"))
    await until(lambda: len(receiver.tokens) == 1)
    assert receiver.claims[0]["sub_id"]["session"]["id"] == "after"


async def test_verification_events_are_delivered(transmitter: Transmitter, receiver: Receiver) -> None:
    """Receivers: asking for a verification event shows that the stream works, without waiting for a revocation."""
    stream = await transmitter.pushed_to(receiver)
    asked = {"stream_id": stream["stream_id"], "state": "VGhpcyBpcyBhbiBleGFtcGxl"}
    assert (await transmitter.mail.post("/ssf/v1/verify", json=asked)).status_code == 204
    await until(lambda: len(receiver.tokens) == 1)
    claims = verified(receiver.tokens[0], await transmitter.jwks(), audience=stream["aud"], issuer=transmitter.url)
    assert claims["sub_id"] == {"format": "opaque", "id": stream["stream_id"]}
    assert claims["events"] == {sets.VERIFICATION: {"state": asked["state"]}}
    again = await transmitter.mail.post("/ssf/v1/verify", json=asked)
    assert again.status_code == 429
    assert 0 < int(again.headers["retry-after"]) <= stream["min_verification_interval"]

    async def stored() -> bool:
        found = await transmitter.service.transmission.find("mail", stream["stream_id"])
        return bool(found.stream.verifications)

    async with asyncio.timeout(10):
        while await stored():
            await asyncio.sleep(0.02)


async def test_only_what_was_requested_is_delivered(log: Client, transmitter: Transmitter, receiver: Receiver) -> None:
    """Receivers that know CAEP alone: a deleted client reaches them as revoked sessions, a suspended one not at all."""
    made = await transmitter.stream(
        delivery={"method": "urn:ietf:rfc:8935", "endpoint_url": receiver.url},
        events_requested=[sets.SESSION_REVOKED, "https://schemas.example/unknown"],
    )
    assert made["events_delivered"] == [sets.SESSION_REVOKED]
    await write(log, suspended("c"), deleted("c"), revoked("d", "g"))
    await until(lambda: len(receiver.tokens) == 2)
    assert {(*each["events"],) for each in receiver.claims} == {(sets.SESSION_REVOKED,)}
    assert {"format": "complex", "application": {"format": "opaque", "id": "c"}} in [
        each["sub_id"] for each in receiver.claims
    ]


async def test_subjects_can_be_removed_and_added(log: Client, transmitter: Transmitter, receiver: Receiver) -> None:
    """Receivers that do not serve a user: they need not hear of that user, and still hear of everything else."""
    stream_id = (await transmitter.pushed_to(receiver))["stream_id"]
    user = {"stream_id": stream_id, "subject": {"format": "iss_sub", "iss": IDP, "sub": "bob"}}
    assert (await transmitter.mail.post("/ssf/v1/subjects/remove", json=user)).status_code == 204
    changed = transmitter.service.transmission.streams
    await until(lambda: any(each.rules for each in changed.values()))
    await write(log, revoked("c", "g1", "bob"), user_revoked("bob"), revoked("c", "g2", "ada"), deleted("c"))
    await until(lambda: len(receiver.tokens) == 2)
    assert "bob" not in str(receiver.claims)
    assert (await transmitter.mail.post("/ssf/v1/subjects/add", json=user)).status_code == 200
    await until(lambda: not any(each.rules for each in changed.values()))
    await write(log, revoked("c", "g3", "bob"))
    await until(lambda: len(receiver.tokens) == 3)


async def test_a_feed_that_was_made_anew_is_followed(log: Client, transmitter: Transmitter, receiver: Receiver) -> None:
    """Operators who restore a log: streams go on by themselves, and say again what they said, under the same ids."""
    from registry import streams as register  # noqa: PLC0415  for this alone

    await transmitter.pushed_to(receiver)
    await write(log, revoked("c", "g1"))
    await until(lambda: len(receiver.tokens) == 1)
    await register.rebuild_feed(log)
    await write(log, revoked("c", "g2"))
    await until(lambda: {each["sub_id"]["session"]["id"] for each in receiver.claims} == {"g1", "g2"})
    assert len({each["jti"] for each in receiver.claims}) == 2


async def test_nobody_but_the_host_itself_is_pushed_to(
    log: Client, nats_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Receivers: a SET goes over TLS to a server that proves to be the host of their URL, or it does not go."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, private = tmp_path / "receiver.pem", tmp_path / "receiver.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    receiver = Receiver()
    async with receiver.listening(ssl_certfile=str(pem), ssl_keyfile=str(private)):
        reach = Reach(networks=["127.0.0.0/8", "::1/128"])
        tls = ssl.create_default_context(cafile=str(pem))
        async with push.opened_client(tls) as client:
            url = f"https://localhost:{receiver.port}/events"
            token = "e30.e30.e30"
            answer = await push.push(client, reach, url, token, authorization=None)
            assert answer.outcome == "taken"
            assert receiver.headers[-1]["host"] == f"localhost:{receiver.port}"
            other = f"https://127.0.0.1:{receiver.port}/events"
        async with push.opened_client(tls) as client:
            assert (await push.push(client, reach, other, token, authorization=None)).outcome == "failed"
        async with push.opened_client(ssl.create_default_context()) as client:
            assert (await push.push(client, reach, url, token, authorization=None)).outcome == "failed"
        async with push.opened_client(tls) as client:
            shut = await push.push(client, Reach(), url, token, authorization=None)
            assert shut == push.Answer("failed", "its host has no address that may be pushed to")
    assert receiver.tokens == [token]
