"""Discovery, and the management of event streams, over HTTP."""

import asyncio
from pathlib import Path

import httpx
import msgspec
import pytest
from nats.aio.client import Client

from door import roles
from grantbook import subjects
from grantbook.sdk.log import LogReader
from tests.sdk.given import revoked, write
from tests.transmitter.given import Receiver, Transmitter, token_of_receiver, transmitting, until
from transmitter import app, keys, sets, streams, transmission
from transmitter.app import settings_from

PUSH = {"method": "urn:ietf:rfc:8935", "endpoint_url": "https://receiver.example/events"}
SECRET = "Bearer the-secret-of-the-receiver"
BROKEN_HEADER = msgspec.json.encode({"delivery": PUSH | {"authorization_header": "a\r\nX: y"}})


async def test_discovery_says_where_everything_is(transmitter: Transmitter) -> None:
    """Receivers: they are told an issuer, and find out the rest by themselves."""
    async with httpx.AsyncClient(base_url=transmitter.url) as anyone:
        found = (await anyone.get("/.well-known/ssf-configuration")).json()
        assert found["issuer"] == transmitter.url
        assert found["spec_version"] == "1_0"
        assert found["delivery_methods_supported"] == ["urn:ietf:rfc:8935", "urn:ietf:rfc:8936"]
        assert found["default_subjects"] == "ALL"
        (key,) = (await anyone.get(found["jwks_uri"])).json()["keys"]
        assert "d" not in key
        assert (await anyone.post(found["verification_endpoint"])).status_code == 401
        assert (await anyone.get(found["configuration_endpoint"])).status_code == 401
        admin = {"Authorization": f"Bearer {token_of_receiver('root').replace('gb_admin', 'gb_feed')}"}
        assert (await anyone.get(found["configuration_endpoint"], headers=admin)).status_code == 403
    made = await transmitter.stream()
    assert (await transmitter.mail.get(found["status_endpoint"], params=made)).json()["status"] == "enabled"


async def test_an_issuer_with_a_path_is_discovered(log: Client, nats_url: str, tmp_path: Path) -> None:
    """Receivers of one of several issuers on a host: its path stands behind the well-known one."""
    async with transmitting(nats_url, tmp_path, issuer="https://id.example/tenant") as it:
        found = (await it.mail.get("/.well-known/ssf-configuration/tenant")).json()
        assert found["issuer"] == "https://id.example/tenant"
        assert found["configuration_endpoint"] == "https://id.example/ssf/v1/streams"
        assert (await it.mail.get("/.well-known/ssf-configuration")).status_code == 404
        assert (await it.stream())["iss"] == "https://id.example/tenant"


async def test_other_receivers_streams_are_not_there(transmitter: Transmitter) -> None:
    """Receivers: nobody else reads, changes, polls or deletes their streams, or learns that they exist."""
    made = await transmitter.stream(description="of mail")
    stream_id = made["stream_id"]
    named = {"stream_id": stream_id}
    other = transmitter.files
    subject = named | {"subject": {"format": "opaque", "id": "x"}}
    answers = [
        await other.get("/ssf/v1/streams", params=named),
        await other.patch("/ssf/v1/streams", json=named),
        await other.put("/ssf/v1/streams", json=named),
        await other.delete("/ssf/v1/streams", params=named),
        await other.get("/ssf/v1/status", params=named),
        await other.post("/ssf/v1/status", json=named | {"status": "paused"}),
        await other.post("/ssf/v1/subjects/add", json=subject),
        await other.post("/ssf/v1/subjects/remove", json=subject),
        await other.post("/ssf/v1/verify", json=named),
        await other.post(f"/ssf/v1/streams/{stream_id}/poll", json={}),
    ]
    assert {each.status_code for each in answers} == {404}
    assert (await other.get("/ssf/v1/streams")).json() == []
    assert (await transmitter.mail.get("/ssf/v1/streams")).json() == [made]
    assert (await transmitter.mail.get("/ssf/v1/streams", params=named)).json() == made
    answer = await transmitter.mail.get("/ssf/v1/streams", params=named)
    assert answer.headers["cache-control"] == "no-store"


async def test_a_configuration_is_changed_replaced_and_deleted(transmitter: Transmitter) -> None:
    """Receivers: PATCH changes what it names, PUT leaves nothing of what it does not name, DELETE leaves nothing."""
    made = await transmitter.stream(delivery=PUSH, events_requested=[sets.SESSION_REVOKED], description="x" * 300)
    assert made["description"] == "x" * streams.MAX_DESCRIPTION_CHARACTERS
    stream_id = made["stream_id"]
    changed = await transmitter.mail.patch("/ssf/v1/streams", json={"stream_id": stream_id, "description": "y"})
    assert changed.json() == made | {"description": "y"}
    wrong = await transmitter.mail.patch("/ssf/v1/streams", json={"stream_id": stream_id, "aud": "else"})
    assert (wrong.status_code, wrong.json()["detail"].split(":")[0]) == (400, "aud")
    replaced = (await transmitter.mail.put("/ssf/v1/streams", json=made | {"description": "z"})).json()
    assert replaced == made | {"description": "z"}
    bare = (await transmitter.mail.put("/ssf/v1/streams", json={"stream_id": stream_id})).json()
    assert bare["delivery"]["method"] == "urn:ietf:rfc:8936"
    assert "description" not in bare
    assert bare["events_delivered"] == list(sets.SUPPORTED)
    assert (await transmitter.mail.delete("/ssf/v1/streams", params={"stream_id": stream_id})).status_code == 204
    assert (await transmitter.mail.get("/ssf/v1/streams", params={"stream_id": stream_id})).status_code == 404
    assert (await transmitter.mail.get("/ssf/v1/streams")).json() == []
    await until(lambda: not transmitter.service.transmission.streams)


async def test_a_stream_that_is_deleted_leaves_no_consumer(
    log: Client, transmitter: Transmitter, receiver: Receiver
) -> None:
    """Operators: the feed's server does not keep a place for a receiver that is gone."""
    made = await transmitter.pushed_to(receiver)

    async def consumers() -> int:
        async with LogReader(log, subjects.REVOCATIONS) as feed:
            answer = await feed._ask(f"$JS.API.CONSUMER.NAMES.{subjects.REVOCATIONS}", {})
        return len(answer["consumers"] or ())

    async with asyncio.timeout(10):
        while await consumers() != 1:
            await asyncio.sleep(0.02)
        await transmitter.mail.delete("/ssf/v1/streams", params={"stream_id": made["stream_id"]})
        while await consumers() != 0:
            await asyncio.sleep(0.02)


async def test_a_receivers_secret_is_kept_to_itself(
    log: Client, transmitter: Transmitter, capfd: pytest.CaptureFixture[str]
) -> None:
    """Receivers: what they gave us to call them with is shown to nobody, stored sealed, and in no log line."""
    made = await transmitter.stream(delivery=PUSH | {"authorization_header": SECRET})
    assert "secret-of" not in str(made)
    read = await transmitter.mail.get("/ssf/v1/streams", params={"stream_id": made["stream_id"]})
    assert "authorization" not in read.text.lower()
    async with LogReader(log, subjects.bucket_stream(subjects.SSF)) as reader:
        stored = await reader.at_on_leader((await reader.state()).last)
    assert stored is not None
    assert b"secret-of" not in stored.data
    found = await transmitter.service.transmission.find("mail", made["stream_id"])
    assert found.stream.delivery.authorization is not None
    # Whoever reads the configuration, changes something and puts it back does not lose the secret by that...
    await transmitter.mail.put("/ssf/v1/streams", json=made)
    kept = await transmitter.service.transmission.find("mail", made["stream_id"])
    assert kept.stream.delivery.authorization == found.stream.delivery.authorization
    # ... but it is never sent to another address than the one that it was given for.
    elsewhere = {"stream_id": made["stream_id"], "delivery": PUSH | {"endpoint_url": "https://other.example/"}}
    await transmitter.mail.patch("/ssf/v1/streams", json=elsewhere)
    gone = await transmitter.service.transmission.find("mail", made["stream_id"])
    assert gone.stream.delivery.authorization is None
    assert "secret-of" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"[]", "body"),
        (b"{", "body"),
        (b'{"delivery": {"method": "urn:ietf:rfc:8935"}}', "delivery.endpoint_url"),
        (b'{"delivery": {"method": "carrier-pigeon"}}', "delivery.method"),
        (
            b'{"delivery": {"method": "urn:ietf:rfc:8935", "endpoint_url": "https://10.0.0.1/"}}',
            "delivery.endpoint_url",
        ),
        (
            BROKEN_HEADER,
            "delivery.authorization_header",
        ),
        (b'{"events_requested": "all"}', "events_requested"),
        (b'{"events_requested": [' + b",".join([b'"x"'] * 65) + b"]}", "events_requested"),
        (b'{"description": null}', "description"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(transmitter: Transmitter, body: bytes, named: str) -> None:
    """Receivers under development: the answer says which member is wrong, and never repeats it."""
    answer = await transmitter.mail.post("/ssf/v1/streams", content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")
    assert answer.json()["detail"].startswith(f"{named}:")


async def test_receivers_are_limited(transmitter: Transmitter) -> None:
    """Operators: one receiver cannot fill the bucket, or the memory of the transmitter."""
    for _ in range(transmission.MAX_STREAMS_OF_RECEIVER):
        stream_id = (await transmitter.stream())["stream_id"]
    over = await transmitter.mail.post("/ssf/v1/streams", json={})
    assert (over.status_code, over.json()["code"]) == (403, "too_many_streams")
    assert (await transmitter.files.post("/ssf/v1/streams", json={})).status_code == 201
    large = {"stream_id": stream_id, "subject": {"format": "opaque", "id": "x" * 2_000}}
    assert (await transmitter.mail.post("/ssf/v1/subjects/remove", json=large)).status_code == 400
    huge = await transmitter.mail.post("/ssf/v1/streams", content=b"x" * 70_000)
    assert huge.status_code == 413


async def test_it_says_how_it_is(transmitter: Transmitter) -> None:
    """Operators: it is ready when it can deliver, and warns of receivers that do not take."""
    await until(transmitter.service.transmission.caught_up.is_set)
    ready = await transmitter.mail.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
    made = await transmitter.pushed_to(Receiver())  # where nobody listens
    await transmitter.mail.post("/ssf/v1/verify", json={"stream_id": made["stream_id"]})
    await until(lambda: transmitter.service.transmission.failing == 1)
    warned = await transmitter.mail.get("/readyz")
    assert warned.status_code == 200
    assert warned.json()["warnings"]["receivers"].startswith("1 receivers")


async def test_a_secret_that_cannot_be_opened_is_not_left_out(
    log: Client, nats_url: str, tmp_path: Path, receiver: Receiver
) -> None:
    """Receivers: with another sealing key nothing is sent without their secret; it waits, and a warning says so."""
    async with transmitting(nats_url, tmp_path) as before:
        await before.pushed_to(receiver, authorization_header=SECRET)
    (tmp_path / "sealing.key").unlink()
    async with transmitting(nats_url, tmp_path) as after:
        await write(log, revoked("c", "g"))
        await until(lambda: after.service.transmission.failing == 1)
    assert receiver.headers == []


def test_settings_are_checked(tmp_path: Path) -> None:
    """Operators: a setting that is missing or wrong is named before anything runs with it."""
    environment = {
        "GRANTBOOK_NATS_URL": "nats://127.0.0.1:4222",
        "GRANTBOOK_TOKENS_FILE": str(tmp_path / "tokens.json"),
        "GRANTBOOK_SSF_ISSUER": "https://id.example/",
        "GRANTBOOK_SSF_SUBJECT_ISSUER": "https://idp.example",
        "GRANTBOOK_SSF_SIGNING_KEYS_FILE": str(tmp_path / "signing.json"),
        "GRANTBOOK_SSF_SEALING_KEY_FILE": str(tmp_path / "sealing.key"),
        "GRANTBOOK_SSF_ALLOWED_HOSTS": "a.example, .b.example",
    }
    chosen = settings_from(environment)
    assert (chosen.issuer, chosen.base_url, chosen.issuer_path) == ("https://id.example", "https://id.example", "")
    assert chosen.allowed_hosts == ("a.example", ".b.example")
    for name in environment:
        if name != "GRANTBOOK_SSF_ALLOWED_HOSTS":
            with pytest.raises(KeyError, match=name):
                settings_from({key: value for key, value in environment.items() if key != name})
    for name, value in {
        "GRANTBOOK_SSF_ISSUER": "http://id.example",
        "GRANTBOOK_SSF_ALLOWED_NETWORKS": "everywhere",
        "GRANTBOOK_SSF_DEVELOPMENT": "yes",
    }.items():
        with pytest.raises(ValueError, match=name):
            settings_from(environment | {name: value})
    with pytest.raises(keys.KeysRefused, match="no key file"):
        app.create_app(chosen)
    app.make_signing_key(chosen.signing_keys_file)
    app.make_sealing_key(chosen.sealing_key_file)
    with pytest.raises(roles.TokensRefused):
        app.create_app(chosen)
