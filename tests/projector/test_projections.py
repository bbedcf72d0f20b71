"""Every event type, from the log to what the read API shows."""

from datetime import timedelta

from msgspec import structs
from nats.aio.client import Client

from grantbook import subjects
from grantbook.sdk.log import LogReader
from grantbook.sealed import seal, user_key_id
from projector.db import Connection
from tests.projector import given
from tests.projector.conftest import Api, caught_up


async def test_a_registered_client_is_listed(log: Client, api: Api, projected: None, database: Connection) -> None:
    """Admins: what an agent registered is what they see."""
    about = given.metadata("Näher Agent", scope="mail.read", redirect_uris=("http://127.0.0.1:1/cb",))
    event = given.registered("c1", about)
    await given.write(log, event)
    await caught_up(database, log)
    page = await api.get("/admin/v1/clients", count="true")
    assert page["total"] == 1
    (item,) = page["items"]
    assert item | {"family": ""} == {
        "client_id": "c1",
        "client_name": "Näher Agent",
        "redirect_uris": ["http://127.0.0.1:1/cb"],
        "scope": "mail.read",
        "grant_types": ["authorization_code"],
        "token_endpoint_auth_method": "none",
        "client_id_issued_at": int(event.at.timestamp()),
        "created_at": event.at.isoformat().replace("+00:00", "Z"),
        "source": "dcr",
        "status": "active",
        "active_grants": 0,
        "active_users": 0,
        "family": "",
        "flags": ["loopback_only"],
    }


async def test_changed_metadata_replaces_what_was_registered(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Admins: they filter by what a client is now, and see in its history that it changed."""
    await given.write(
        log,
        given.registered("c1", given.metadata("Before", software_version="1")),
        given.changed("c1", given.metadata("After", localized={"client_name#de": "Nachher"}), "client_name"),
    )
    await caught_up(database, log)
    assert not (await api.get("/admin/v1/clients", name="before"))["items"]
    client = await api.get("/admin/v1/clients/c1")
    assert client["client_name"] == "After"
    assert client["metadata"]["client_name#de"] == "Nachher"
    assert "software_version" not in client["metadata"]
    assert [each["type"] for each in client["history"]] == ["client.registered", "client.metadata_changed"]
    assert client["history"][1]["changed"] == ["client_name"]


async def test_a_suspended_client_has_no_active_grants_until_it_is_resumed(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Users: a suspension takes their grants out of use, and its end gives them back."""
    await given.write(log, given.registered("c1"), given.issued("c1", "g1", "u1"), given.suspended("c1"))
    await caught_up(database, log)
    client = await api.get("/admin/v1/clients/c1")
    assert (client["status"], client["active_grants"], client["active_users"]) == ("suspended", 0, 0)
    assert not (await api.get("/admin/v1/clients/c1/grants"))["items"]
    (grant,) = (await api.get("/admin/v1/clients/c1/grants", status="suspended"))["items"]
    assert grant["status"] == "suspended"
    assert "ended_at" not in grant
    await given.write(log, given.resumed("c1"))
    await caught_up(database, log)
    client = await api.get("/admin/v1/clients/c1")
    assert (client["status"], client["active_grants"], client["active_users"]) == ("active", 1, 1)


async def test_a_deleted_client_tells_who_deleted_it_until_that_person_is_erased(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Admins: they see who did it and why. Those who did: once erased, their name is nowhere."""
    await given.write_keys(log, given.KIM)
    await given.write(
        log,
        given.registered("c1"),
        given.issued("c1", "g1", "u1"),
        given.deleted("c1", detail="looked like phishing"),
        given.revoked("c1", "g1", "u1", reason="client_deleted"),
    )
    await caught_up(database, log)
    client = await api.get("/admin/v1/clients/c1")
    assert (client["status"], client["active_grants"]) == ("deleted", 0)
    ended = client["history"][-1]
    assert ended["by"] == {"kind": "admin", "id": "kim"}
    assert ended["detail"] == "looked like phishing"
    (grant,) = (await api.get("/admin/v1/clients/c1/grants", status="revoked"))["items"]
    at = await database.fetchval("SELECT recorded_at FROM events WHERE type = 'client.deleted'")
    assert grant["ended_reason"] == "client_deleted"
    assert grant["ended_at"] == at.isoformat().replace("+00:00", "Z"), "the deletion ended it, not what followed"
    await given.erase_key(log, given.KIM)
    ended = (await api.get("/admin/v1/clients/c1"))["history"][-1]
    assert ended["by"] == {"kind": "admin"}
    assert "detail" not in ended


async def test_a_grant_is_shown_with_its_user_and_its_last_use(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Admins: whose grant it is, by name, and when it was last used."""
    await given.write_keys(log, user_key_id("u1"))
    event = given.issued("c1", "g1", "u1", username="Ada Lovelace", scopes=("a", 'b"\\{},'))
    await given.write(log, given.registered("c1"), event)
    at, earlier = given.now(), given.now() - timedelta(hours=1)
    await given.write(log, given.used(("c1", "g1"), at=at), given.used(("c1", "g1"), ("c1", "nobody's"), at=earlier))
    await caught_up(database, log)
    (grant,) = (await api.get("/admin/v1/users/u1/grants"))["items"]
    (of_client,) = (await api.get("/admin/v1/clients/c1/grants", user="LOVE"))["items"]
    assert grant.pop("client_name") == "Agent"
    assert grant == of_client
    assert grant == {
        "grant_id": "g1",
        "client_id": "c1",
        "user_id": "u1",
        "username": "Ada Lovelace",
        "scopes": ["a", 'b"\\{},'],
        "issued_at": event.at.isoformat().replace("+00:00", "Z"),
        "expires_at": event.expires_at.isoformat().replace("+00:00", "Z"),
        "last_activity_at": at.isoformat().replace("+00:00", "Z"),
        "status": "active",
    }
    client = await api.get("/admin/v1/clients/c1")
    assert client["last_activity_at"] == grant["last_activity_at"]
    assert await database.fetchval("SELECT uses FROM grants") == 2


async def test_what_an_erased_user_granted_has_no_name(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """People who were erased: no name of theirs is opened again. Those who come back have a new key, and a name."""
    key_id, anew = user_key_id("u1"), bytes(32)
    await given.write_keys(log, key_id)
    await given.erase_key(log, key_id)
    await given.write(log, given.registered("c1"), given.issued("c1", "g1", "u1"), given.issued("c1", "g2", "u2"))
    await caught_up(database, log)
    await log.jetstream().publish(subjects.bucket_key(subjects.USER_KEYS, key_id), anew)
    back = structs.replace(
        given.issued("c1", "g4", "u1"), username=seal(b"back again", key_id=key_id, key=anew, nonce=bytes(12))
    )
    await given.write(log, given.issued("c1", "g3", "u1"), back)
    await caught_up(database, log)
    grants = (await api.get("/admin/v1/clients/c1/grants"))["items"]
    names = {each["grant_id"]: each.get("username") for each in grants}
    assert names == {"g1": None, "g2": None, "g3": None, "g4": "back again"}


async def test_an_expired_grant_counts_as_active_for_the_grace_of_small_refreshes(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Users: a grant that is refreshed in small steps is not shown as expired between two of them."""
    day, hour = timedelta(days=1), timedelta(hours=1)
    now = given.now()
    lately = given.issued("c1", "lately", "u1", at=now - 5 * hour, lifetime=4 * hour + hour / 2)
    long_ago = given.issued("c1", "long ago", "u1", at=now - 9 * day, lifetime=day)
    again = given.issued("c1", "extended", "u1", at=now - 9 * day, lifetime=day)
    forever = given.issued("c1", "for ever", "u1", at=now, lifetime=timedelta(days=365 * 7000))
    positions = await given.write(log, given.registered("c1"), lately, long_ago, again, forever)
    await given.write(log, given.extended(again, positions[3], 20 * day))
    await caught_up(database, log)
    active = {each["grant_id"] for each in (await api.get("/admin/v1/clients/c1/grants"))["items"]}
    assert active == {"lately", "extended", "for ever"}
    (grant,) = (await api.get("/admin/v1/clients/c1/grants", status="expired"))["items"]
    assert (grant["grant_id"], grant["status"], grant["ended_reason"]) == ("long ago", "expired", "expired")
    assert grant["ended_at"] == grant["expires_at"] == long_ago.expires_at.isoformat().replace("+00:00", "Z")


async def test_a_refresh_in_the_activity_moves_the_expiry_that_is_shown(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Admins: they see until when a grant lasts, although small refreshes are not in the log."""
    grant = given.issued("c1", "g1", "u1")
    later = grant.expires_at + timedelta(hours=1)
    await given.write(log, given.registered("c1"), grant)
    await given.write(log, given.used(("c1", "g1"), expires_at=later), given.used(("c1", "g1")))
    await caught_up(database, log)
    (shown,) = (await api.get("/admin/v1/clients/c1/grants"))["items"]
    assert shown["expires_at"] == later.isoformat().replace("+00:00", "Z")


async def test_a_cut_off_ends_the_grants_issued_before_it_and_no_later_one(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """People who left: all they granted ends. Who comes back may grant again."""
    await given.write(
        log,
        given.registered("c1"),
        given.registered("c2"),
        given.issued("c1", "g1", "u1"),
        given.issued("c1", "other", "u2"),
        given.cut_off("u1"),
        given.issued("c2", "g2", "u1"),
        given.cut_off("u1", reason=None),
        given.issued("c2", "g3", "u1"),
    )
    await caught_up(database, log)
    grants = (await api.get("/admin/v1/users/u1/grants", status="any", sort="issued_at"))["items"]
    assert [(each["grant_id"], each["status"], each.get("ended_reason")) for each in grants] == [
        ("g1", "revoked", "offboarded"),
        ("g2", "revoked", "user_grants_revoked"),
        ("g3", "active", None),
    ]
    assert len((await api.get("/admin/v1/users/u2/grants"))["items"]) == 1


async def test_ids_that_are_urls_are_asked_for_by_their_key(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Admins with clients that are known by a metadata document: a URL fits in no path."""
    url, user = "https://agent.example/oauth/client.json", "user@example.com"
    await given.write(log, given.registered(url, source="cimd"), given.issued(url, "grant of/1", user))
    await caught_up(database, log)
    (item,) = (await api.get("/admin/v1/clients"))["items"]
    assert (item["client_id"], item["client_key"]) == (url, subjects.token(url))
    assert (await api.get(f"/admin/v1/clients/{item['client_key']}"))["client_id"] == url
    (grant,) = (await api.get(f"/admin/v1/users/{subjects.token(user)}/grants"))["items"]
    assert (grant["grant_id"], grant["user_id"]) == ("grant of/1", user)


async def test_text_that_postgres_cannot_hold_does_not_stop_the_projector(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Operators: nobody who grants something under an odd name halts the read models for all."""
    await given.write_keys(log, user_key_id("u\0"))
    await given.write(
        log,
        given.registered("c1", given.metadata("A\0\N{RIGHT-TO-LEFT OVERRIDE}\ud7ff😀", scope="a\0b")),
        given.issued("c1", "g\0", "u\0", username="Ada\0", scopes=("a\0",)),
        given.revoked("c1", "g\0", "u\0", reason="\0"),
        given.cut_off("u\0", reason="\0"),
    )
    await caught_up(database, log)
    (grant,) = (await api.get("/admin/v1/clients/c1/grants", status="any"))["items"]
    assert grant["username"] == "Ada\N{REPLACEMENT CHARACTER}"
    assert len((await api.audit("/audit/v1/events"))["items"]) == 4


async def test_events_are_kept_as_they_stand_in_the_log(log: Client, projected: None, database: Connection) -> None:
    """Auditors: whatever anybody called himself, they read each byte that was written, under the ids that it names."""
    name = 'tab\t newline\n back\\slash NUL\0 "quotes" \N{SNOWMAN} \N{GRINNING FACE}'
    url = "https://agent.example/client?with=a:url"
    await given.write(
        log,
        given.registered(url, given.metadata(name)),
        given.issued(url, "grant one", "ünïcode", username=name),
        given.revoked(url, "grant one", "ünïcode"),
        given.cut_off("u1"),
        given.deleted("nobody"),
    )
    spaced = (
        b'{ "type":\t"client.suspended",\r\n"client_id": "c1", "at": "2026-01-01T00:00:00Z", "by": {"kind": "x\\\\"} }'
    )
    await given.write_raw(log, subjects.client_gate("c1"), "client.suspended", spaced)
    await caught_up(database, log)
    client, grant, user = map(subjects.token, (url, "grant one", "ünïcode"))
    keys = [
        (client, None, None),
        (client, grant, user),
        (client, grant, user),
        (None, None, "u1"),
        ("nobody", None, None),
    ]
    rows = await database.fetch("SELECT * FROM events ORDER BY position")
    async with LogReader(log, subjects.LOG) as reader:
        expected = []
        for position, about in enumerate([*keys, ("c1", None, None)], 1):
            raw = await reader.at_on_leader(position)
            assert raw is not None
            headers = raw.headers or {}
            said = (position, headers["ce-id"], headers["ce-type"], raw.stored_at, *about, raw.data.decode())
            expected.append(said)
    assert [tuple(each) for each in rows] == expected
