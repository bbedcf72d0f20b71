"""Flags of clients: what their metadata tells, what the log before them tells, and what time tells."""

import itertools
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from msgspec import structs
from nats.aio.client import Client

from appraisal import flags
from grantbook import wire
from grantbook.events import Event
from projector import copying, projections
from projector.db import Connection
from projector.projections import LogBatch
from tests.projector import given
from tests.projector.conftest import Api, caught_up

NOON: Final = datetime(2026, 3, 14, 12, tzinfo=UTC)
DAY: Final = 86_400
TABLES: Final = (
    *("clients", "listed", "tallies", "days", "names", "redirections", "standings", "client_users"),
    *("redirect_hosts", "grants", "users", "cut_offs", "hours", "events"),
)
"""What the log fills."""
Happened = tuple[float, Event]
"""An event, and when it was recorded, in seconds after noon."""


def recorded(happened: Iterable[Happened]) -> list[wire.Recorded]:
    """Events as a log has them that recorded them at these times."""
    records = []
    for position, (seconds, event) in enumerate(happened, start=1):
        sent = wire.encode(event, event_id=given.new_id())
        at = NOON + timedelta(seconds=seconds)
        records.append(wire.decode(sent.subject, sent.headers, sent.body, position=position, recorded_at=at))
    return records


async def apply(database: Connection, happened: Iterable[Happened], *, size: int) -> dict[str, list[str]]:
    """Apply events in batches of this size to empty read models. The clients that have a flag of the log's telling."""
    # Not TRUNCATE, which makes each file of each table and index anew.
    await database.execute("; ".join(f"DELETE FROM {table}" for table in TABLES))
    await database.execute("UPDATE totals SET grants = 0, active_grants = 0, users = 0")
    records = recorded(happened)
    for start in range(0, len(records), size):
        batch = LogBatch()
        for each in records[start : start + size]:
            projections.fold(batch, each, {})
        async with database.transaction():
            await copying.copy_events(database, [batch.events])
            await projections.apply(database, batch)
    rows = await database.fetch("SELECT * FROM clients ORDER BY registered_position")
    names = ("new_redirect_host", "many_registrations")
    found = {each["client_id"]: [name for name in names if each[name]] for each in rows}
    return {client: names for client, names in found.items() if names}


def redirecting(client_id: str, *uris: str) -> Event:
    """A registration under a name of its own, so that its family is its own."""
    return given.registered(client_id, given.metadata(client_id, redirect_uris=uris))


def moved(client_id: str, *uris: str) -> Event:
    return given.changed(client_id, given.metadata(client_id, redirect_uris=uris), "redirect_uris")


async def test_a_redirect_host_is_new_for_a_day_after_it_was_first_seen(database: Connection) -> None:
    """Admins: a host that nobody had heard of the day before is pointed out, whoever redirects to it meanwhile."""
    there, other = "https://there.example/cb", "https://other.example/cb"
    happened = [
        (0, redirecting("first", there)),
        (DAY - 1, redirecting("within a day", "https://THERE.example:8443/elsewhere", "http://127.0.0.1:1/cb")),
        (DAY, redirecting("after a day", there)),
        (DAY, redirecting("native", "http://localhost:1/cb", "com.example.app:/cb", "cursor://host.example/cb")),
        (2 * DAY, redirecting("two hosts", there, other)),
        (2 * DAY, redirecting("moves on", there)),
        (2 * DAY + 60, moved("moves on", other)),
        (5 * DAY, redirecting("moves late", there)),
        (5 * DAY, moved("moves late", other)),
    ]
    expected = ["first", "within a day", "two hosts", "moves on"]
    for size in (1, 2, 4, len(happened)):
        assert await apply(database, happened, size=size) == {each: ["new_redirect_host"] for each in expected}


async def test_what_a_client_redirected_to_for_a_moment_was_seen_too(database: Connection) -> None:
    """Operators: a rebuild that reads both events of a client at once knows the hosts that the live projector knew."""
    brief, steady = "https://brief.example/cb", "https://steady.example/cb"
    happened = [
        (0, redirecting("c1", brief)),
        (1, moved("c1", steady)),
        (2, moved("c1", "https://last.example/cb")),
        (3, redirecting("c1", "https://registered-again.example/cb")),
        (2 * DAY, moved("c1", steady)),
        (2 * DAY, redirecting("c2", brief)),
        (2 * DAY, redirecting("c3", "https://registered-again.example/cb")),
    ]
    tables = []
    for size in (1, 2, 3, len(happened)):
        assert await apply(database, happened, size=size) == {}
        tables.append([dict(each) for each in await database.fetch("SELECT * FROM redirect_hosts ORDER BY host")])
    assert all(each == tables[0] for each in tables)
    assert [(each["host"], each["first_position"]) for each in tables[0]] == [
        ("brief.example", 1),
        ("last.example", 3),
        ("registered-again.example", 4),
        ("steady.example", 2),
    ]


async def test_registrations_of_a_family_within_a_minute_are_many_from_the_twenty_first_on(
    database: Connection,
) -> None:
    """Admins: a flood is pointed out, and neither what came before it nor what many people install over a day."""

    def registered(name: str, number: int, every: float, start: float = 0) -> list[Happened]:
        about = given.metadata(name, redirect_uris=("http://127.0.0.1/cb",))
        return [(start + n * every, given.registered(f"{name} {n}", about)) for n in range(number)]

    flood, busy = registered("flood", 25, 1), registered("busy", 25, 3.01)
    again = registered("flood", 3, 1, start=3_600)
    again = [(at, structs.replace(event, client_id=f"later {n}")) for n, (at, event) in enumerate(again)]
    renamed = given.changed("flood 24", given.metadata("busy", redirect_uris=("http://127.0.0.1/cb",)), "client_name")
    twice = [(at, event) for at, event in flood[:3]]
    happened = [*sorted([*flood, *busy, *twice], key=lambda each: each[0]), (200.0, renamed), *again]
    expected = {f"flood {n}": ["many_registrations"] for n in range(20, 25)}
    for size in (1, 7, 20, len(happened)):
        assert await apply(database, happened, size=size) == expected


async def test_the_use_of_a_client_does_not_depend_on_how_the_log_was_cut_into_batches(database: Connection) -> None:
    """Operators: a rebuild finds the same last use as the live projector, also where the log is odd."""
    grant = given.issued("c1", "g1", "u1", at=NOON)
    later = NOON + timedelta(days=9)
    happened: list[Happened] = [
        (0, given.issued("c1", "g0", "u1", at=NOON + timedelta(days=99))),
        (0, given.registered("c1")),
        (0, given.registered("c2")),
        (0, structs.replace(given.extended(grant, 4, timedelta(days=40)), at=later)),
        (0, grant),
        (0, given.issued("c1", "g1", "u1", at=NOON - timedelta(days=1))),
    ]
    for size in (1, 2, 3, len(happened)):
        await apply(database, happened, size=size)
        found = await database.fetch(
            "SELECT client_key, nullif(last_granted_at, '-infinity') FROM standings ORDER BY client_key"
        )
        assert [tuple(each) for each in found] == [("c1", later), ("c2", None)]


async def listed(api: Api, **query: Any) -> list[str]:
    return sorted(each["client_id"] for each in (await api.get("/admin/v1/clients", **query))["items"])


async def test_a_client_that_nobody_ever_used_is_flagged_after_thirty_days(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Admins who clear up: what was registered for nothing is found; what somebody uses, or may yet use, is not."""
    long_ago = given.now() - timedelta(days=flags.NEVER_USED_DAYS, minutes=1)
    lately = given.now() - timedelta(days=flags.NEVER_USED_DAYS) + timedelta(minutes=5)
    names = ("unused", "granted", "active", "paused", "gone")
    await given.write(
        log,
        *(given.registered(each, at=long_ago) for each in names),
        given.registered("young", at=lately),
        given.issued("granted", "g1", "u1", at=long_ago, lifetime=timedelta(days=1)),
        given.suspended("paused"),
        given.deleted("gone"),
    )
    await given.write(log, given.used(("active", "unknown")))
    await caught_up(database, log)
    assert await listed(api, flag="never_used", status="any") == ["paused", "unused"]
    assert await listed(api, flag=["never_used", "new_redirect_host"]) == ["unused"]
    assert await listed(api, flag=["never_used", "loopback_only"]) == []
    (item,) = (await api.get("/admin/v1/clients", flag="never_used"))["items"]
    assert item["flags"] == ["new_redirect_host", "never_used"]


async def test_each_flag_of_a_client_is_explained(log: Client, api: Api, projected: None, database: Connection) -> None:
    """Admins: they read why, in a sentence, rather than look a word up."""
    native = given.metadata("Native", redirect_uris=("http://127.0.0.1/cb", "http://localhost/cb"))
    await given.write(
        log,
        *(given.registered(f"native {n}", native) for n in range(flags.BURST_CLIENTS + 1)),
        given.registered("plain", given.metadata("Plain", redirect_uris=())),
    )
    await caught_up(database, log)
    many = f"/admin/v1/clients/{await key_of(api, f'native {flags.BURST_CLIENTS}')}"
    client = await api.get(many)
    assert client["flags"] == ["loopback_only", "many_registrations"]
    assert client["why_flagged"] == {each: flags.SENTENCES[each] for each in client["flags"]}
    assert await listed(api, flag="many_registrations") == [f"native {flags.BURST_CLIENTS}"]
    (family,) = (await api.get("/admin/v1/families", limit=1))["items"]
    assert family["flags"] == ["loopback_only", "many_registrations"]
    client = await api.get("/admin/v1/clients/plain")
    assert (client["flags"], "why_flagged" in client) == ([], False)


async def key_of(api: Api, client_id: str) -> str:
    items = (await api.get("/admin/v1/clients", limit=200))["items"]
    (key,) = (each["client_key"] for each in items if each["client_id"] == client_id)
    return str(key)


async def test_every_flag_can_be_filtered_by_and_no_other_word(
    log: Client, api: Api, projected: None, database: Connection
) -> None:
    """Admins: a flag that is misspelt is told to them, with the names there are; it never finds nobody in silence."""
    await given.write(log, given.registered("c1", given.metadata("Agent", redirect_uris=())))
    await caught_up(database, log)
    for flag in flags.ALL:
        assert await listed(api, flag=flag) == []
    assert await listed(api, flag="") == ["c1"]
    for pair in itertools.pairwise(flags.ALL):
        assert await listed(api, flag=list(pair)) == []
    problem = await api.get("/admin/v1/clients", flag=["never_used", "neverused"], answers=400)
    assert problem["code"] == "invalid_parameter"
    assert problem["detail"].startswith("flag: one of ")
    assert all(each in problem["detail"] for each in flags.ALL)
