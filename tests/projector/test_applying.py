"""Two connections that take turns at applying batches: in order, all or nothing, and out of everybody's way."""

import asyncio

import pytest
from nats.aio.client import Client

from grantbook.events import Event
from projector import db, projections, run
from projector.applying import Halt, Prepared, Turns, apply, taking_turns
from projector.db import Checkpoint, Connection, Moved
from projector.projections import LogBatch
from projector.run import Sources
from tests.projector import given

WAIT_SECONDS = 10.0


@pytest.fixture
async def database(database: Connection) -> Connection:
    """The session that has the projector lock."""
    await db.take_projector_lock(database, db.SCHEMA)
    return database


async def prepared(log: Client, sources: Sources, database: Connection, *events: Event) -> list[Prepared]:
    """A batch for each of the events, from the beginning on."""
    await given.write(log, *events)
    at = await db.checkpoint(database, "log")
    named = await run.continued(sources.log, "log", at)
    await db.move_checkpoint(database, db.SCHEMA, "log", at, named)
    batches: list[Prepared] = []
    async with sources.log.follow(0) as follower:
        while len(batches) < len(events):
            for raw in await follower.next(WAIT_SECONDS):
                batch = LogBatch()
                recorded = raw.recorded()
                projections.fold(batch, recorded, {})
                before = batches[-1].after if batches else named
                after = Checkpoint(raw.sequence, recorded.id, named.identity)
                batches.append(Prepared(before, after, batch, 0, 1))
    return batches


async def applied(turns: Turns) -> Checkpoint:
    """Have the earliest batch applied."""
    turns.go_on()
    assert turns.first is not None
    await asyncio.wait([turns.first], timeout=WAIT_SECONDS)
    taken = turns.take()
    assert taken is not None
    return taken


async def positions(database: Connection) -> list[int]:
    return [each["position"] for each in await database.fetch("SELECT position FROM events ORDER BY 1")]


async def begun_copied(database: Connection, number: int) -> None:
    """Wait until so many transactions have written events, and stand."""
    async with asyncio.timeout(WAIT_SECONDS):
        while number != await database.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND query LIKE 'COPY%'"
            " AND datname = current_database()"
        ):
            await asyncio.sleep(0.01)


async def test_a_batch_that_was_begun_is_applied_after_the_one_before_it(
    log: Client, sources: Sources, database: Connection, database_url: str
) -> None:
    """Auditors: however far ahead somebody writes, what is read is the log up to a place, in its order."""
    first, second, third = await prepared(
        log, sources, database, given.registered("c1"), given.issued("c1", "g1", "u1"), given.revoked("c1", "g1", "u1")
    )
    async with taking_turns(database_url, db.SCHEMA) as turns:
        turns.begin(first)
        turns.begin(second)
        assert not turns.can_begin
        await begun_copied(database, 2)
        assert turns.resting
        assert turns.take() is None
        assert await positions(database) == []
        assert await applied(turns) == first.after
        assert await positions(database) == [1]
        turns.begin(third)
        assert await applied(turns) == second.after
        assert await applied(turns) == third.after
    assert await positions(database) == [1, 2, 3]
    assert await db.checkpoint(database, "log") == third.after
    assert await database.fetchval("SELECT revoked_position FROM grants") == 3


async def test_what_another_projector_has_applied_is_no_reason_to_halt(
    log: Client, sources: Sources, database: Connection, database_url: str
) -> None:
    """Operators: one that lost its place to a standby goes on from there, and does not call the log broken."""
    first, second = await prepared(log, sources, database, given.registered("c1"), given.registered("c2"))
    async with taking_turns(database_url, db.SCHEMA) as turns:
        turns.begin(first)
        turns.begin(second)
        await begun_copied(database, 2)
        # It gets there first, and waits for rows of the same key.
        other = asyncio.create_task(apply(database, db.SCHEMA, "log", first))
    assert await other
    assert await positions(database) == [1]
    async with taking_turns(database_url, db.SCHEMA) as turns:
        turns.begin(first)
        turns.begin(second)
        with pytest.raises(Moved):
            await applied(turns)
        assert await applied(turns) == second.after
    assert await positions(database) == [1, 2]


async def test_nobody_takes_turns_beside_a_lock_that_is_not_there(database_url: str, database: Connection) -> None:
    """Operators with two servers that both think that they are the primary: a projector writes to one of them."""
    await database.execute("SELECT pg_advisory_unlock_all()")
    with pytest.raises(db.UNREACHABLE, match="projector lock"):
        async with taking_turns(database_url, db.SCHEMA):
            pass


@pytest.mark.parametrize("while_ahead", [True, False])
async def test_what_cannot_be_applied_takes_nothing_else_with_it(
    log: Client, sources: Sources, database: Connection, database_url: str, while_ahead: bool
) -> None:
    """Operators: the read model halts at the batch that does not fit, with all before it applied, and nothing after."""
    first, second = await prepared(log, sources, database, given.registered("c1"), given.registered("c2"))
    assert isinstance(second.batch, LogBatch)
    if while_ahead:
        second.batch.events = bytearray(b"what Postgres cannot read")
    else:
        second.batch.cut_offs["u", 2] = ("u", "second", given.now(), "admin")
    async with taking_turns(database_url, db.SCHEMA) as turns:
        turns.begin(first)
        turns.begin(second)
        assert await applied(turns) == first.after
        with pytest.raises(Halt, match="positions 2 to 2 of the log do not fit"):
            await applied(turns)
        assert turns.first is None
        assert turns.can_begin
    assert await positions(database) == [1]
    assert await db.checkpoint(database, "log") == first.after


async def test_what_was_begun_stands_in_no_rebuilds_way(
    log: Client, sources: Sources, database: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Admins: a rebuild that wants to be alone is let through, whatever activity waits behind it."""
    monkeypatch.setattr(db, "SWAP_WAIT_MILLISECONDS", 60_000)
    (first,) = await prepared(log, sources, database, given.registered("c1"))
    at = await db.checkpoint(database, "activity")
    batch = projections.ActivityBatch()
    uses = [Prepared(at, Checkpoint(1, "id", "stream"), batch, 0, 1)]
    builder = await db.connect(database_url, db.SCHEMA, name="test")

    async def alone() -> None:
        async with db.alone(builder, db.SCHEMA):
            pass

    async with taking_turns(database_url, db.SCHEMA) as turns:
        turns.begin(first)
        await begun_copied(database, 1)
        rebuild = asyncio.create_task(alone())
        async with asyncio.timeout(WAIT_SECONDS):
            while await apply(database, db.SCHEMA, "activity", uses[-1], wait=False):
                # It does not wait yet, and this was applied: once more.
                before = uses[-1].after
                uses.append(Prepared(before, Checkpoint(before.sequence + 1, "id", "stream"), batch, 0, 1))
        of_log, of_activity = (run.Lane(each, database, db.SCHEMA, sources) for each in db.READ_MODELS)
        of_activity.ready.append(uses[-1])
        async with asyncio.timeout(WAIT_SECONDS):
            await run._step(database, db.SCHEMA, of_log, of_activity, turns)
            assert not await run._sweep(database, db.SCHEMA, wait=turns.first is None)
        assert len(of_activity.ready) == 1
        assert await applied(turns) == first.after
        await asyncio.wait_for(rebuild, WAIT_SECONDS)
        await run._step(database, db.SCHEMA, of_log, of_activity, turns)
        assert len(of_activity.ready) == 0
    assert await db.checkpoint(database, "activity") == uses[-1].after
    await builder.close()
