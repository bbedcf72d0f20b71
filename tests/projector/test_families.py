"""Families of clients, and what deleting a client or a family would end."""

from datetime import timedelta
from typing import Any

import pytest
from msgspec import structs
from nats.aio.client import Client

from grantbook.fingerprints import metadata_sha256
from projector.db import Connection
from tests.projector import given
from tests.projector.conftest import Api, caught_up

CLAUDE = given.metadata("Claude Code", redirect_uris=("http://localhost:1/cb",))
NOTHING = {"clients": 0, "active_grants": 0, "suspended_grants": 0, "users": 0, "scopes": []}


async def a_family(log: Client, database: Connection) -> None:
    """Four alike, of which one is suspended and one deleted, and another client; three users grant to them."""
    at = given.now() - timedelta(hours=1)
    other_port = structs.replace(CLAUDE, redirect_uris=("http://localhost:2/cb",))
    await given.write(
        log,
        *(given.registered(f"c{n}", other_port if n else CLAUDE, at=at + timedelta(minutes=n)) for n in range(4)),
        given.registered("other", given.metadata("Other")),
        given.issued("c0", "g1", "u1", scopes=("mail.read", "files")),
        given.issued("c0", "g2", "u2", scopes=("mail.read",)),
        given.issued("c1", "g3", "u1", scopes=("calendar",)),
        given.issued("c1", "g4", "u3", scopes=("ended",)),
        given.issued("c2", "g5", "u3", scopes=("suspended",)),
        given.issued("c3", "g6", "u3", scopes=("deleted",)),
        given.issued("other", "g7", "u1", scopes=("other",)),
        given.revoked("c1", "g4", "u3"),
        given.suspended("c2"),
        given.deleted("c3"),
    )
    await given.write(log, given.used(("c1", "g3"), at=at), given.used(("c3", "g6"), at=given.now()))
    await caught_up(database, log)


@pytest.fixture
async def family(log: Client, api: Api, projected: None, database: Connection) -> dict[str, Any]:
    """`a_family`, as it is listed."""
    await a_family(log, database)
    item: dict[str, Any] = (await api.get("/admin/v1/families", limit=1))["items"][0]
    return item


async def test_a_family_is_told_as_it_is_listed(api: Api, family: dict[str, Any]) -> None:
    """Admins: the page behind a line says what the line said."""
    assert (family["client_name"], family["clients"], family["active_grants"]) == ("Claude Code", 3, 3)
    assert (family["redirect_uris"], family["flags"]) == (["http://localhost:1/cb"], ["loopback_only"])
    assert await api.get(f"/admin/v1/families/{family['family']}") == family


async def test_families_are_found_by_a_part_of_their_name(api: Api, family: dict[str, Any]) -> None:
    """Admins who look for a product: all of its families, each with all of its clients."""
    page = await api.get("/admin/v1/families", name="CODE", count="true")
    assert (page["items"], page["total"]) == ([family], 1)
    assert [each["client_name"] for each in (await api.get("/admin/v1/families", name=""))["items"]] == [
        "Claude Code",
        "Other",
    ]
    assert (await api.get("/admin/v1/families", name="%", count="true")) == {"items": [], "total": 0}


async def test_what_a_deletion_would_end_is_told_before(api: Api, family: dict[str, Any]) -> None:
    """Users: an admin sees how many of them would be cut off, and from what, before it is done."""
    preview = await api.get(f"/admin/v1/families/{family['family']}/preview")
    used = (await api.get("/admin/v1/clients/c1"))["last_activity_at"]
    assert preview == {
        "family": family["family"],
        "clients": 3,
        "active_grants": 3,
        "suspended_grants": 1,
        "users": 2,
        "scopes": ["calendar", "files", "mail.read"],
        "last_activity_at": used,
    }
    assert await api.get("/admin/v1/clients/c0/preview") == {
        "family": family["family"],
        "client_id": "c0",
        "clients": 1,
        "active_grants": 2,
        "suspended_grants": 0,
        "users": 2,
        "scopes": ["files", "mail.read"],
    }
    suspended = await api.get("/admin/v1/clients/c2/preview")
    assert (suspended["active_grants"], suspended["suspended_grants"], suspended["scopes"]) == (0, 1, [])
    deleted = {"family": family["family"], "client_id": "c3"} | NOTHING
    assert await api.get("/admin/v1/clients/c3/preview") == deleted


async def test_a_deletion_ends_what_its_preview_said(
    log: Client, api: Api, database: Connection, family: dict[str, Any]
) -> None:
    """Admins: the numbers that they decided by are those that follow."""
    preview = await api.get(f"/admin/v1/families/{family['family']}/preview")
    before = (await api.get("/admin/v1/status"))["totals"]
    await given.write(log, *(given.deleted(f"c{n}") for n in range(3)))
    await caught_up(database, log)
    after = (await api.get("/admin/v1/status"))["totals"]
    assert before["active_grants"] - after["active_grants"] == preview["active_grants"]
    assert after["deleted_clients"] - before["deleted_clients"] == preview["clients"]
    assert await api.get(f"/admin/v1/families/{family['family']}/preview") == {"family": family["family"]} | NOTHING
    gone = await api.get(f"/admin/v1/families/{family['family']}")
    assert gone | {"clients": 3, "active_grants": 3, "flags": family["flags"], "last_seen_at": ""} == family | {
        "last_seen_at": ""
    }
    assert (gone["clients"], gone["active_grants"], gone["flags"]) == (0, 0, [])
    assert [each["client_name"] for each in (await api.get("/admin/v1/families"))["items"]] == ["Other"]


@pytest.mark.parametrize("name", ["0123456789ab", "0", "ABCDEFABCDEF", "%00", "0123456789a%0A", "%F0%9F%98%80" * 12])
async def test_what_was_never_registered_is_no_family(name: str, api: Api, family: dict[str, Any]) -> None:
    """Callers: 404 says that there never was one, whatever they asked for."""
    for path in (f"/admin/v1/families/{name}", f"/admin/v1/families/{name}/preview"):
        assert (await api.get(path, answers=404))["code"] == "family_not_found"
    assert (await api.get("/admin/v1/clients/nobody/preview", answers=404))["code"] == "client_not_found"


async def test_no_more_scopes_are_previewed_than_an_admin_reads(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Admins: a client that asks for everything under the sun does not fill their screen."""
    scopes = tuple(f"scope-{n:03}" for n in range(150))
    await given.write(log, given.registered("c1"), given.issued("c1", "g1", "u1", scopes=scopes))
    await caught_up(database, log)
    assert (await api.get("/admin/v1/clients/c1/preview"))["scopes"] == list(scopes[:100])


async def test_a_grant_tells_the_metadata_that_it_was_given_under(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Users: what they agreed to is told apart from what the client became afterwards."""
    before, after = given.metadata("Before"), given.metadata("After")
    grant = structs.replace(given.issued("c1", "g1", "u1"), metadata_sha256=metadata_sha256(before))
    extended = structs.replace(given.extended(grant, 2, timedelta(days=9)), metadata_sha256=metadata_sha256(before))
    (_, _, change, *_) = await given.write(
        log,
        given.registered("c1", before),
        grant,
        given.changed("c1", after, "client_name"),
        extended,
        given.issued("c1", "older", "u1"),
    )
    await caught_up(database, log)
    assert change == 3
    client = await api.get("/admin/v1/clients/c1")
    assert client["metadata_sha256"] == metadata_sha256(after)
    for path in ("/admin/v1/clients/c1/grants", "/admin/v1/users/u1/grants"):
        found = {each["grant_id"]: each.get("metadata_sha256") for each in (await api.get(path))["items"]}
        assert found == {"g1": metadata_sha256(before), "older": None}
    told = await api.audit("/audit/v1/clients/c1")
    assert told["metadata_sha256"] == metadata_sha256(after)
    assert [each.get("metadata_sha256") for each in told["grants"]] == [metadata_sha256(before), None]
