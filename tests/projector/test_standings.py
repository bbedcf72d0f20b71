"""Counts of active grants that are kept, and not made by counting: they are always what counting would give."""

import asyncio
import random
from datetime import timedelta
from typing import Final

import pytest
from nats.aio.client import Client

from grantbook.events import Event
from projector import db, projections, verify
from projector.db import Checkpoint, Connection
from projector.projections import LogBatch
from projector.run import Sources
from tests.projector import given
from tests.projector.conftest import Api, caught_up, projecting, until
from tests.projector.test_flags import Happened, apply, recorded
from tests.projector.test_verify import compared

SEQUENCES: Final = 60
EVENTS: Final = 40
FOLDED: Final = ("standings", "clients", "grants", "users")
NAMES: Final = ("Agent", "Another")
REDIRECTS: Final = ("https://agent.example/callback", "https://another.example/cb")
TALLIES: Final = {
    "tallies": "traits",
    "names": "name, traits",
    "redirections": "redirects_key, traits, redirects, hosts",
}
"""Tables that say how many clients are alike, and in what."""


def happened(dice: random.Random, group: str = "") -> list[Happened]:
    """What can happen to a few clients (their ids begin with `group`), grants and users."""
    clients, users = [f"{group}c{number}" for number in (1, 2, 3)], ["u1", "u2"]
    long_ago = given.now() - timedelta(days=400)
    issued = [given.issued(each, "first", "u1") for each in clients]
    events: list[Event] = [*(given.registered(each) for each in clients), *issued]
    for number in range(EVENTS):
        grant = dice.choice(issued)
        match dice.randrange(10):
            case 0 | 1 | 2 | 3:
                at = dice.choice([None, None, None, long_ago])
                grant = given.issued(dice.choice(clients), f"g{number}", dice.choice(users), at=at)
                issued.append(grant)
                events.append(grant)
            case 4:
                events.append(given.extended(grant, 1, timedelta(days=dice.choice([1, 800]))))
            case 5 | 6:
                events.append(given.revoked(grant.client_id, grant.grant_id, grant.user_id))
            case 7:
                events.append(given.cut_off(dice.choice(users)))
            case 8:
                client = dice.choice(clients)
                about = given.metadata(dice.choice(NAMES), redirect_uris=(dice.choice(REDIRECTS),))
                happens: list[Event] = [given.suspended(client), given.resumed(client), given.changed(client, about)]
                events.append(dice.choice(happens))
            case _:
                events.append(given.deleted(grant.client_id) if dice.random() < 0.2 else grant)  # a second time
    return list(enumerate(events))


async def test_what_is_counted_is_what_stands_however_the_log_was_cut(database: Connection) -> None:
    """Admins: the number beside a client is right, whatever happened to it, in whatever batches it was applied."""
    dice = random.Random(7)
    # Planning each statement for each batch takes longer than all else here.
    await database.execute("SET plan_cache_mode = force_generic_plan")
    for sequence in range(SEQUENCES):
        events = happened(dice)
        if sequence % 2:  # what no registry writes: facts about what is not there yet
            begin = dice.randrange(len(events))
            events = list(enumerate(event for _, event in events[begin:] + events[:begin]))
        seen = []
        for size in (1, dice.randrange(2, 12), len(events)):
            await apply(database, events, size=size)
            assert await verify._miscounted(database) == [], (sequence, size, events)
            seen.append([await database.fetch(f"SELECT * FROM {table} ORDER BY 1, 2") for table in FOLDED])
            for table, of in TALLIES.items():
                kept = await database.fetch(f"SELECT {of}, clients, in_use FROM {table} ORDER BY {of}")
                counted = f"""
                    SELECT {of}, count(*) AS clients, count(*) FILTER (WHERE s.active_grants > 0) AS in_use
                    FROM to_list JOIN standings s USING (client_key) GROUP BY {of} ORDER BY {of}
                """
                assert kept == await database.fetch(counted), (table, sequence, size, events)
            days = await database.fetch("SELECT day, traits, clients FROM days ORDER BY day, traits")
            listed = "SELECT created_at::date AS day, traits, count(*) AS clients FROM to_list GROUP BY 1, 2"
            assert days == await database.fetch(f"{listed} ORDER BY 1, 2"), (sequence, size, events)
        assert seen[0] == seen[1] == seen[2], (sequence, events)
        await projections.sweep(database)
        assert await verify._miscounted(database) == [], (sequence, events)


async def test_a_sweep_beside_a_batch_of_another_projector_counts_what_the_batch_left(
    database: Connection, database_url: str
) -> None:
    """Operators of two projectors: while one does not know yet that it lost its lock, the other spoils no count."""
    named: list[Event] = [given.registered("c1", given.metadata("Old")), given.issued("c1", "g1", "u1")]
    await apply(database, enumerate(named), size=2)
    await database.execute("UPDATE grants SET lapses_at = now() - interval '1 s'")
    batch = LogBatch()
    projections.fold(batch, recorded(enumerate([*named, given.changed("c1", given.metadata("New"))]))[2], {})
    before = await db.checkpoint(database, "log")
    standby = await db.connect(database_url, db.SCHEMA, name="standby")

    async def sweep() -> int:
        async with standby.transaction():
            return await projections.sweep(standby)

    async with database.transaction():
        await db.move_checkpoint(database, db.SCHEMA, "log", before, Checkpoint(3, "id", "stream"))
        await projections.apply(database, batch)
        sweeping = asyncio.create_task(sweep())

        async def waiting() -> bool:
            pid = standby.get_server_pid()
            return bool(await database.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", pid))

        await until(waiting, "the sweep to wait")
    assert await sweeping == 1
    assert await verify._miscounted(database) == []
    assert await database.fetchval("SELECT sum(in_use) FROM names") == 0
    await standby.close()


async def test_a_grant_that_lapses_leaves_the_counts_at_once(
    log: Client, sources: Sources, database: Connection, database_url: str, api: Api
) -> None:
    """Admins: what time ended is not shown as active, and soon is not counted where clients are sorted by it."""
    # It lapses a while after it expires: what its small refreshes did is not in the log.
    short = given.issued("c1", "g1", "u1", at=given.now() - timedelta(days=60), lifetime=timedelta(days=30))
    async with projecting(database_url, sources):
        await given.write(log, given.registered("c1"), given.issued("c1", "g2", "u2"), short)
        await caught_up(database, log)
        await database.execute("UPDATE grants SET lapses_at = now() - interval '1 s' WHERE grant_id = 'g2'")
        [client] = (await api.get("/admin/v1/clients"))["items"]
        assert (client["active_grants"], client["active_users"]) == (0, 0)

        async def swept() -> bool:
            return bool(await database.fetchval("SELECT open_grants = 0 FROM standings"))

        await until(swept, "the sweep")
    assert await database.fetchval("SELECT open_users FROM standings") == 0
    assert not await database.fetchval("SELECT bool_or(open) FROM grants")


@pytest.mark.parametrize(
    "spoilt",
    [
        "UPDATE standings SET open_grants = open_grants + 1",
        "UPDATE standings SET open_users = 0",
        "UPDATE standings SET status = 'suspended'",
        "UPDATE grants SET open = false",
        "UPDATE client_users SET open_grants = 2",
        "DELETE FROM client_users",
        "UPDATE totals SET grants = 0",
        "UPDATE totals SET active_grants = active_grants + 1",
        "UPDATE totals SET users = users + 1",
        "UPDATE tallies SET in_use = 0",
        "UPDATE names SET in_use = 2",
        "UPDATE redirections SET in_use = in_use + 1",
    ],
)
async def test_a_count_that_is_wrong_is_found(
    log: Client, sources: Sources, database: Connection, database_url: str, spoilt: str
) -> None:
    """Auditors: counts are compared with the rows that they count."""
    async with projecting(database_url, sources):
        await given.write(log, given.registered("c1"), given.issued("c1", "g1", "u1"))
        await caught_up(database, log)
    assert await compared(database_url, sources) == {}
    await database.execute(spoilt)
    assert await compared(database_url, sources) != {}
