"""Read models made anew from the log: to take the place of the live ones, and to find out what is wrong with them."""

import asyncio
import subprocess
import sys

from nats.aio.client import Client

from grantbook import subjects
from projector import db, verify
from projector.db import Connection
from projector.run import Sources
from projector.verify import Means, Verdict
from registry import streams
from tests.projector import given
from tests.projector.conftest import Api, caught_up, halted, projecting, until
from tests.projector.test_run import age_out, everything, mixed

AGE_SECONDS = 0.2


def untold(_done: int, _total: int, _unit: str) -> None:
    """Nobody looks at the progress."""


async def compared(database_url: str, sources: Sources) -> dict[tuple[str, str], int]:
    """What `verify` finds: differences by table and side."""
    verdict: Verdict = await verify.verify(Means(database_url, sources), untold)
    return {(each.table, each.side): each.count for each in verdict.differences}


async def leftovers(database: Connection) -> list[str]:
    found = await database.fetch("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'grantbook%'")
    return sorted({each["nspname"] for each in found} - {db.SCHEMA, db.META_SCHEMA})


async def test_verify_finds_no_difference_where_there_is_none(
    log: Client, sources: Sources, database: Connection, database_url: str
) -> None:
    """Operators: an alarm of `verify` means something. The projector goes on meanwhile."""
    async with projecting(database_url, sources):
        await given.write(log, *mixed())
        await given.write(log, given.used(("c1", "g1"), ("c2", "g2"), count=2), given.used(("c1", "g1")))
        await caught_up(database, log)
        writing = asyncio.create_task(given.write(log, *(given.registered(f"more{n}") for n in range(500))))
        assert await compared(database_url, sources) == {}
        await writing
        await caught_up(database, log)
    assert await leftovers(database) == []


async def test_verify_finds_every_planted_difference(
    log: Client, sources: Sources, database: Connection, database_url: str
) -> None:
    """Operators: a row that was lost, made up or changed behind the projector's back is found and shown."""
    async with projecting(database_url, sources):
        await given.write(log, *mixed())
        await given.write(log, given.used(("c1", "g1")))
        await caught_up(database, log)
    await database.execute(
        """
        DELETE FROM grants WHERE grant_id = 'g3';
        UPDATE grants SET uses = uses + 1 WHERE grant_id = 'g1';
        UPDATE clients SET deleted_position = NULL WHERE client_id = 'c2';
        INSERT INTO users (user_key, granted) VALUES ('nobody', false);
        UPDATE events SET body = '{}' WHERE position = 5;
        DELETE FROM cut_offs WHERE position = 10;
        UPDATE redirect_hosts SET first_position = 2;
        """
    )
    assert await compared(database_url, sources) == {
        ("clients", "live"): 1,
        ("clients", "log"): 1,
        ("grants", "live"): 1,
        ("grants", "log"): 2,
        ("users", "live"): 1,
        ("cut_offs", "log"): 1,
        ("standings", "live"): 1,
        ("totals", "live"): 1,
        ("redirect_hosts", "live"): 1,
        ("redirect_hosts", "log"): 1,
        ("events", "live"): 1,
        ("events", "log"): 1,
    }
    assert await leftovers(database) == []
    await verify.rebuild(Means(database_url, sources), untold)
    assert await compared(database_url, sources) == {}


async def test_rebuilding_under_a_live_projector_loses_nothing_and_is_not_noticed(
    log: Client, sources: Sources, database: Connection, database_url: str, api: Api
) -> None:
    """Operators who rebuild in the middle of the day: reads are answered all the time, and nothing is missing after."""
    done = asyncio.Event()
    written: list[str] = []

    async def write() -> None:
        n = 0
        while not done.is_set():
            n += 1
            await given.write(log, given.registered(f"c{n}"), given.issued(f"c{n}", "g", f"u{n % 7}"))
            await given.write(log, given.used((f"c{n}", "g")))
            written.append(f"c{n}")

    async def read() -> int:
        reads = 0
        before = 0
        while not done.is_set():
            answer = await api.ask("/admin/v1/clients", count="true")
            assert answer.status_code == 200, answer.text
            now = answer.json()["total"]
            assert now >= before, "the list went back in time"
            before, reads = now, reads + 1
        return reads

    async with projecting(database_url, sources):
        writing, reading = asyncio.create_task(write()), asyncio.create_task(read())
        for _ in range(3):
            await verify.rebuild(Means(database_url, sources), untold)
        done.set()
        await writing
        assert await reading > 0
        await caught_up(database, log)
        assert await database.fetchval("SELECT count(*) FROM clients") == len(written)
        assert await database.fetchval("SELECT sum(uses) FROM grants") == len(written)
        assert await compared(database_url, sources) == {}
    assert await leftovers(database) == []


async def test_rebuilding_is_the_way_out_after_the_log_was_replaced(
    log: Client, sources: Sources, database: Connection, database_url: str
) -> None:
    """Operators: a halted projector goes on by itself once the read models are those of the log that is there."""
    await given.write(log, *mixed())
    async with projecting(database_url, sources):
        await caught_up(database, log)
        await log.jetstream().delete_stream(subjects.REVOCATIONS)
        await log.jetstream().delete_stream(subjects.LOG)
        await streams.ensure(log)
        await given.write(log, given.registered("x1"))
        await halted(database)
        await verify.rebuild(Means(database_url, sources), untold)
        await given.write(log, given.registered("x2"))

        async def followed() -> bool:
            return bool(await database.fetchval("SELECT count(*) = 2 FROM clients"))

        await until(followed, "the projector to go on")
        await caught_up(database, log)


async def test_activity_that_aged_out_is_no_difference(
    log: Client, sources: Sources, database: Connection, database_url: str
) -> None:
    """Operators of a register older than its activity: what can be compared is, and the rest is no alarm."""
    async with projecting(database_url, sources):
        await given.write(log, given.registered("c1"), given.issued("c1", "g1", "u1"), given.issued("c1", "g2", "u1"))
        await given.write(log, given.used(("c1", "g1")), given.used(("c1", "g1")), given.used(("c1", "g2")))
        await caught_up(database, log)
    await age_out(log, before=3)
    assert await compared(database_url, sources) == {}
    await database.execute(
        "UPDATE grants SET last_activity_at = last_activity_at + interval '1 s' WHERE grant_id = 'g2'"
    )
    assert await compared(database_url, sources) == {("grants", "live"): 1}
    await age_all_out(log)
    await verify.rebuild(Means(database_url, sources), untold)
    assert await database.fetchval("SELECT sum(uses) FROM grants") == 0
    assert await compared(database_url, sources) == {}


async def age_all_out(log: Client) -> None:
    """Let all activity be gone by its age."""
    stream = log.jetstream()
    config = (await stream.stream_info(subjects.ACTIVITY)).config
    await stream.update_stream(config.evolve(max_age=AGE_SECONDS, duplicate_window=AGE_SECONDS))

    async def gone() -> bool:
        return (await stream.stream_info(subjects.ACTIVITY)).state.messages == 0

    await until(gone, "the activity to age out")
    await stream.update_stream(config)


async def test_the_commands_say_what_they_found(
    log: Client, sources: Sources, database: Connection, database_url: str, nats_url: str
) -> None:
    """Operators and their scripts: exit status and words say the same."""

    async def command(name: str) -> tuple[int, str]:
        arguments = [sys.executable, "-m", "projector", name, "--nats-url", nats_url, "--database-url", database_url]
        done = await asyncio.to_thread(subprocess.run, arguments, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    async with projecting(database_url, sources):
        await given.write(log, *mixed())
        await caught_up(database, log)
    assert await command("verify") == (0, f"no differences, up to position {len(mixed())}\n")
    await database.execute("UPDATE clients SET client_name = 'Forged' WHERE client_id = 'c1'")
    status, said = await command("verify")
    assert status == 1
    assert "clients: 1 in the read models, not in the log" in said
    assert '"client_name":"Forged"' in said
    assert await command("rebuild") == (0, f"the read models were made anew, up to position {len(mixed())}\n")
    assert (await command("verify"))[0] == 0
    await given.write_raw(log, "grantbook.client.c9.record", "client.renamed", b"{}")
    status, said = await command("rebuild")
    assert (status, "client.renamed" in said, "Traceback" in said) == (1, True, False)
    assert (await everything(database))["clients"], "what was there stays"
