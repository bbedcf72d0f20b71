"""The projector at work: exactly once, through restarts and take-overs, and halted where going on would be a lie."""

import asyncio
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from nats.aio.client import Client

from deploy.dev.servers import nats_server
from grantbook import subjects, wire
from grantbook.events import Event
from grantbook.sdk.connection import connect
from projector import app, copying, db, projections, run
from projector.applying import Halt, Prepared, apply
from projector.db import Connection, Moved
from projector.projections import LogBatch
from projector.run import Sources
from registry import streams
from registry.commit import GroupCommit, Message
from tests.projector import given
from tests.projector.conftest import Api, caught_up, halted, projecting, until

GRANTS = 20_000
TRIES = 5


async def rows(database: Connection, table: str) -> list[dict[str, Any]]:
    """The table's rows, for comparison."""
    return [dict(each) for each in await database.fetch(f"SELECT t::text AS row FROM {table} t ORDER BY 1")]


async def everything(database: Connection) -> dict[str, list[dict[str, Any]]]:
    return {
        each: await rows(database, each)
        for each in ("clients", "redirect_hosts", "grants", "users", "cut_offs", "events")
    }


def mixed() -> list[Event]:
    """Events that change the same things again and again."""
    grant = given.issued("c1", "g1", "u1")
    other = given.issued("c2", "g2", "u2")
    return [
        given.registered("c1"),
        given.registered("c2"),
        given.suspended("c1"),
        given.changed("c1", given.metadata("Second"), "client_name"),
        given.resumed("c1"),
        grant,
        other,
        given.changed("c1", given.metadata("Third"), "client_name"),
        given.extended(grant, 6, timedelta(days=8)),
        given.cut_off("u2"),
        given.extended(grant, 6, timedelta(days=16)),
        given.issued("c2", "g3", "u2"),
        given.revoked("c1", "g1", "u1"),
        given.suspended("c2"),
        given.cut_off("u2"),
        given.deleted("c2"),
        given.revoked("c2", "g3", "u2", reason="client_deleted"),
        given.revoked("c2", "g2", "u2", reason="client_deleted"),
    ]


async def test_the_rows_do_not_depend_on_how_the_log_was_cut_into_batches(
    log: Client, sources: Sources, database: Connection
) -> None:
    """Operators: a rebuild, which reads in other batches, finds no difference."""
    events = mixed()
    await given.write(log, *events)
    async with sources.log.follow(0) as follower:
        raws = await follower.next(10.0)
        while len(raws) < len(events):
            raws += await follower.next(10.0)
    found = []
    for size in (1, 2, 3, 5, len(raws)):
        async with database.transaction():
            for start in range(0, len(raws), size):
                batch = LogBatch()
                for each in raws[start : start + size]:
                    projections.fold(batch, each.recorded(), {})
                await copying.copy_events(database, [batch.events])
                await projections.apply(database, batch)
            found.append(await everything(database))
            await database.execute("TRUNCATE clients, redirect_hosts, grants, users, cut_offs, events")
    assert all(each == found[0] for each in found)
    assert len(found[0]["events"]) == len(events)


async def test_a_batch_is_applied_once_however_often_it_is_tried(
    log: Client, sources: Sources, database: Connection
) -> None:
    """Admins: a projector that died between applying and knowing so counts nothing twice."""
    await given.write(log, given.registered("c1"), given.issued("c1", "g1", "u1"))
    await given.write(log, given.used(("c1", "g1"), count=3))
    for read_model in db.READ_MODELS:
        at = await db.checkpoint(database, read_model)
        named = await run.continued(sources.reader(read_model), read_model, at)
        await db.move_checkpoint(database, db.SCHEMA, read_model, at, named)
        feed = sources.feed(read_model, named)
        prepared = await feed.next()
        assert prepared is not None
        await apply(database, db.SCHEMA, read_model, prepared)
        before = await everything(database)
        with pytest.raises(Moved):
            await apply(database, db.SCHEMA, read_model, prepared)
        assert await everything(database) == before
        await feed.close()
    assert await database.fetchval("SELECT uses FROM grants") == 3


async def test_a_standby_waits_and_takes_over(
    log: Client, sources: Sources, database: Connection, database_url: str
) -> None:
    """Operators who run two projectors: one works, and when it is gone the other does."""
    async with projecting(database_url, sources):
        await given.write(log, given.registered("c1"))
        await caught_up(database, log)
        first = await holder(database)
        async with projecting(database_url, sources):
            await given.write(log, given.registered("c2"))
            await caught_up(database, log)
            assert await holder(database) == first
            await database.fetchval("SELECT pg_terminate_backend($1)", first)

            async def taken_over() -> bool:
                return await holder(database) not in {None, first}

            await until(taken_over, "somebody to have the lock")
            second = await holder(database)
            await given.write(log, given.registered("c3"))
            await caught_up(database, log)
            assert await holder(database) == second
    assert await database.fetchval("SELECT count(*) FROM clients") == 3


async def holder(database: Connection) -> int | None:
    """The backend that holds the projector lock."""
    found: int | None = await database.fetchval(
        """
        SELECT pid FROM pg_locks
        WHERE locktype = 'advisory' AND granted AND (classid::bigint << 32 | objid::bigint) = $1
        """,
        db.lock_key("projector", db.SCHEMA),
    )
    return found


async def test_a_projector_goes_on_after_its_connections_were_cut(
    log: Client, sources: Sources, database: Connection, database_url: str
) -> None:
    """Operators: a restart of Postgres is no halt, and loses and doubles nothing."""
    async with projecting(database_url, sources):
        for n in range(5):
            await given.write(log, *(given.registered(f"c{n}-{each}") for each in range(200)))
            await database.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'grantbook projector'"
            )
        await caught_up(database, log)
    assert await database.fetchval("SELECT count(*) FROM clients") == 1_000
    assert await database.fetchval("SELECT count(*) FROM events") == 1_000


async def test_read_models_that_were_dropped_are_made_again(
    log: Client, sources: Sources, database: Connection, database_url: str
) -> None:
    """Operators: the read models are a cache; dropping them costs time and nothing else."""
    await given.write(log, *mixed())
    async with projecting(database_url, sources):
        await caught_up(database, log)
        before = await everything(database)
        await database.execute(f'DROP SCHEMA "{db.SCHEMA}" CASCADE')
        await given.write(log, given.registered("c3"))

        async def there() -> bool:
            return bool(await database.fetchval("SELECT to_regclass('checkpoints') IS NOT NULL"))

        await until(there, "the read models")
        await caught_up(database, log)
        again = await everything(database)
    assert [each for each in again["grants"] if each in before["grants"]] == before["grants"]
    assert len(again["events"]) == len(before["events"]) + 1


def unknown_type(log: Client) -> Any:
    return given.write_raw(log, "grantbook.client.c1.record", "client.renamed", b'{"type":"client.renamed"}')


def garbage(log: Client) -> Any:
    return given.write_raw(log, "grantbook.client.c1.record", "client.registered", b"\xff not json")


def no_headers(log: Client) -> Any:
    return log.jetstream().publish("grantbook.client.c1.gate", b"{}")


def on_another_subject(log: Client) -> Any:
    outgoing = wire.encode(given.deleted("c1"), event_id=given.new_id())
    return given.write_raw(log, "grantbook.client.c2.gate", "client.deleted", outgoing.body)


def impossible_time(log: Client) -> Any:
    outgoing = wire.encode(given.registered("c2"), event_id=given.new_id())
    body = outgoing.body.replace(b'Z"', b'"')
    return given.write_raw(log, outgoing.subject, "client.registered", body)


@pytest.mark.parametrize(
    ("poison", "said"),
    [
        (unknown_type, "client.renamed"),
        (garbage, "position 2"),
        (no_headers, "position 2"),
        (on_another_subject, "position 2"),
        (impossible_time, "position"),
    ],
)
async def test_what_is_not_understood_halts_the_projector_and_not_the_reading(
    poison: Callable[[Client], Any],
    said: str,
    log: Client,
    sources: Sources,
    database: Connection,
    database_url: str,
    api: Api,
) -> None:
    """Admins: a list stays as it was and says that it is late, rather than silently lacking something."""
    await given.write(log, given.registered("c1"))
    async with projecting(database_url, sources):
        await caught_up(database, log)
        await poison(log)
        await given.write(log, given.registered("c3"))
        assert said in await halted(database)
        await until_unready(api, "halted")
        assert [each["client_id"] for each in (await api.get("/admin/v1/clients"))["items"]] == ["c1"]
        assert "halted" in (await api.get("/admin/v1/status"))["read_models"]["log"]
    assert (await db.checkpoint(database, "log")).sequence == 1


async def until_unready(api: Api, reason: str) -> None:
    async def unready() -> bool:
        answer = await api.ask("/readyz")
        return answer.status_code == 503 and reason in answer.json()["reasons"].get("read_models", "")

    await until(unready, "readyz to say so")


async def test_rows_that_cannot_be_sent_halt_the_projector_but_a_broken_connection_does_not(
    log: Client, sources: Sources, database: Connection
) -> None:
    """Operators: trying again helps when Postgres is away. When it is ours to mend, they are told so at once."""
    at = await db.checkpoint(database, "log")
    event = copying.event(1, "id", "user.grants_revoked", given.now(), None, None, "u", b"{}")
    batch = LogBatch(events=bytearray(event), cut_offs={("u", 1): ("u", "first", given.now(), "admin")})
    unsendable = Prepared(at, db.Checkpoint(1, "", ""), batch, 0, 1)
    with pytest.raises(Halt, match="do not fit"):
        await apply(database, db.SCHEMA, "log", unsendable)
    assert await db.checkpoint(database, "log") == at
    database.terminate()
    with pytest.raises(db.UNREACHABLE):
        await apply(database, db.SCHEMA, "log", unsendable)


async def test_why_it_halted_is_told_whatever_the_log_said(database: Connection) -> None:
    """Operators: a reason that repeats odd text out of the log can be written down, too."""
    await db.write_halted(database, "log", "type \0\ud800")
    assert await halted(database) == "type \N{REPLACEMENT CHARACTER}\\ud800"


async def test_poisoned_activity_halts_the_activity_alone(
    log: Client, sources: Sources, database: Connection, database_url: str
) -> None:
    """Users: what is wrong with the counting of calls delays no revocation."""
    await given.write_raw(log, "grantbook.activity.idp", "activity.recorded", b"{}")
    async with projecting(database_url, sources):
        assert "position 1" in await halted(database, "activity")
        await given.write(log, given.registered("c1"))

        async def applied() -> bool:
            return bool(await database.fetchval("SELECT count(*) FROM clients"))

        await until(applied, "the log to go on")
        assert await database.fetchval("SELECT halted FROM checkpoints WHERE read_model = 'log'") is None


async def test_another_log_is_never_followed(
    log: Client, sources: Sources, database: Connection, database_url: str
) -> None:
    """Operators who point a projector at the wrong servers: it says so, and mixes nothing."""
    await given.write(log, given.registered("c1"))
    async with projecting(database_url, sources):
        await caught_up(database, log)
        await log.jetstream().delete_stream(subjects.REVOCATIONS)
        await log.jetstream().delete_stream(subjects.LOG)
        await streams.ensure(log)
        await given.write(log, given.registered("x1"), given.registered("x2"))
        assert "rebuild" in await halted(database)
    assert [each["client_id"] for each in await database.fetch("SELECT client_id FROM clients")] == ["c1"]


@pytest.mark.parametrize("written_since", [0, 1, 2, 5])
@pytest.mark.faults
async def test_a_restored_log_is_never_silently_followed(
    written_since: int, database: Connection, database_url: str, tmp_path: Path
) -> None:
    """Operators who restored a backup: the read models say that they are of another past, whatever came after it."""
    with nats_server(tmp_path / "nats") as server:
        log = await connect(server.url, name="test")
        try:
            await streams.ensure(log)
            await given.write(log, given.registered("c1"))
            async with app.opened_sources(log) as sources, projecting(database_url, sources):
                await caught_up(database, log)
                await asyncio.to_thread(server.stop)
                shutil.copytree(tmp_path / "nats" / "jetstream", tmp_path / "backup")
                await asyncio.to_thread(server.start)
                await given.write(log, given.registered("c2"), given.registered("c3"))
                await caught_up(database, log)
                await asyncio.to_thread(server.stop)
                shutil.rmtree(tmp_path / "nats" / "jetstream")
                shutil.copytree(tmp_path / "backup", tmp_path / "nats" / "jetstream")
                await asyncio.to_thread(server.start)
                await given.write(log, *(given.registered(f"x{n}") for n in range(written_since)))
                assert "restored" in await halted(database)
        finally:
            await log.close()
    known = await database.fetch("SELECT client_id FROM clients ORDER BY 1")
    assert [each["client_id"] for each in known] == ["c1", "c2", "c3"]


async def test_activity_that_aged_out_is_not_waited_for(
    log: Client, sources: Sources, database: Connection, database_url: str
) -> None:
    """Operators of a projector that was off for months: it goes on with the activity that is left."""
    await given.write(log, given.registered("c1"), given.issued("c1", "g1", "u1"))
    await given.write(log, *(given.used(("c1", "g1")) for _ in range(5)))
    async with projecting(database_url, sources):
        await caught_up(database, log)
    await given.write(log, *(given.used(("c1", "g1")) for _ in range(5)))
    await age_out(log, before=9)
    async with projecting(database_url, sources):
        await caught_up(database, log)
    assert await database.fetchval("SELECT uses FROM grants") == 7


async def age_out(log: Client, *, before: int) -> None:
    """Let all activity before a sequence be gone, as its age would."""
    stream = log.jetstream()
    config = (await stream.stream_info(subjects.ACTIVITY)).config
    state = (await stream.stream_info(subjects.ACTIVITY)).state
    await stream.update_stream(config.evolve(max_msgs=state.last_seq - before + 1))
    await stream.update_stream(config)


async def test_activity_is_applied_after_the_grants_that_it_names(
    log: Client, sources: Sources, database: Connection, database_url: str
) -> None:
    """Admins: use of a grant that was issued a moment ago is counted, however late its log is read."""
    await given.write(log, *(given.registered(f"c{n}") for n in range(2_500)), given.issued("c1", "g1", "u1"))
    await given.write(log, given.used(("c1", "g1")))
    async with projecting(database_url, sources):
        await caught_up(database, log)
    assert await database.fetchval("SELECT uses FROM grants") == 1


@pytest.mark.faults
async def test_deleting_a_client_with_many_grants_ends_them_at_once_and_holds_up_nobody(
    log: Client, sources: Sources, database: Connection, database_url: str, api: Api
) -> None:
    """Users: one deletion ends 20,000 grants in one step. Others: they are listed within a second meanwhile."""
    async with GroupCommit(log, subjects.LOG) as commit:

        async def write(*events: Event) -> int:
            outgoing = [wire.encode(each, event_id=given.new_id()) for each in events]
            messages = [
                Message(each.subject, each.headers, each.body, each.headers["ce-id"], None) for each in outgoing
            ]
            return max(each.sequence for each in await asyncio.gather(*map(commit.submit, messages)))

        async with projecting(database_url, sources):
            await write(given.registered("c1"))
            for start in range(0, GRANTS, 5_000):
                await write(*(given.issued("c1", f"g{n}", f"u{n % 100}") for n in range(start, start + 5_000)))
            await caught_up(database, log)
            assert (await api.get("/admin/v1/clients/c1"))["active_grants"] == GRANTS
            position = await given.position(log, subjects.LOG, await write(given.deleted("c1")))
            client = await api.get("/admin/v1/clients/c1", at_least=position)
            assert (client["status"], client["active_grants"], client["active_users"]) == ("deleted", 0, 0)
            assert not (await api.get("/admin/v1/clients/c1/grants", at_least=position))["items"]
            assert not (await api.get("/admin/v1/users/u7/grants", at_least=position))["items"]
            # Now the fan-out follows: a `grant.revoked` for each.
            fanning_out = asyncio.create_task(
                write(
                    *(given.revoked("c1", f"g{n}", f"u{n % 100}", reason="client_deleted") for n in range(GRANTS - 1))
                )
            )
            loop = asyncio.get_running_loop()
            took = []
            for n in range(TRIES):
                began = loop.time()
                sequence = await write(given.registered(f"other{n}"))
                at = await given.position(log, subjects.LOG, sequence)
                await until(lambda n=n, at=at: listed(api, f"other{n}", at), "the other client")  # type: ignore[misc]
                took.append(loop.time() - began)
            await fanning_out
            await caught_up(database, log)
    assert median(took) < 1.0
    assert await database.fetchval("SELECT count(*) FROM grants WHERE revoked_position IS NULL") == 1
    grants = await api.get("/admin/v1/clients/c1/grants", status="revoked", count="true", limit=200)
    assert grants["total"] == GRANTS
    assert {each["ended_reason"] for each in grants["items"]} == {"client_deleted"}
    assert len({each["ended_at"] for each in grants["items"]}) == 1


async def listed(api: Api, client: str, at: str) -> bool:
    answer = await api.ask(f"/admin/v1/clients/{client}", at_least=at)
    return answer.status_code == 200


async def test_reading_is_refused_while_there_is_nothing_to_read_from(
    log: Client, sources: Sources, database: Connection, api: Api
) -> None:
    """Admins: read models that are gone are told as such, never shown as an empty register."""
    await database.execute(f'DROP SCHEMA "{db.SCHEMA}" CASCADE')
    for path in ("/admin/v1/clients", "/admin/v1/clients/c1", "/admin/v1/status"):
        assert (await api.get(path, answers=503))["code"] == "unavailable"
    assert "postgres" in (await api.get("/readyz", answers=503))["reasons"]
